//! Required fields: a record that lacks one is refused.
//!
//! protobuf-c, which CRIU uses, refuses a message without a `required` field; prost takes the field's default
//! in silence, so that a cut image would restore as zeros. This scan of the wire bytes runs before prost
//! decodes them, and bounds what they may unfold to.

/// Nested messages, strings and byte lists that one record may hold. A kernel allows 2^20 mappings at most where
/// `vm.max_map_count` was raised, and a mapping is one nested message; a record of 2-byte elements could
/// otherwise unfold to many times its size.
pub const RECORD_PARTS_MAX: u32 = 1 << 22;

/// Depth of nested messages; CRIU's own are a handful deep, only cgroup directories nest freely.
pub const DEPTH_MAX: u32 = 64;

/// What a message must hold. One `static` a message, written by the `schema!` macro beside its struct.
#[derive(Debug)]
pub struct Schema {
    /// CRIU's name of the message.
    pub name: &'static str,
    /// Number and name of each required field.
    pub required: &'static [(u32, &'static str)],
    /// Number and message of each field that is a message itself.
    pub nested: &'static [(u32, SchemaOf)],
}

/// Where to find the schema of a message; a message may hold messages of its own type.
pub type SchemaOf = fn() -> &'static Schema;

/// A message whose required fields are known.
pub trait Checked: prost::Message + Default {
    /// The fields to check.
    fn schema() -> &'static Schema;
}

macro_rules! schema {
    ($message:ident, $name:literal, [$($required:tt),*], [$(($tag:literal, $nested:ident)),*]) => {
        impl super::check::Checked for $message {
            fn schema() -> &'static super::check::Schema {
                static SCHEMA: super::check::Schema = super::check::Schema {
                    name: $name,
                    required: &[$($required),*],
                    nested: &[$(($tag, <$nested as super::check::Checked>::schema)),*],
                };
                &SCHEMA
            }
        }
    };
}
pub(crate) use schema;

/// Why the bytes of a record are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// A required field is not there.
    #[error("required field {message}.{field} is missing")]
    Missing {
        /// CRIU's name of the message.
        message: &'static str,
        /// Its missing field.
        field: &'static str,
    },
    /// The bytes are not a protobuf message.
    #[error("{message} is cut or malformed at its byte {offset}")]
    Malformed {
        /// CRIU's name of the innermost message.
        message: &'static str,
        /// Offset in that message's bytes.
        offset: usize,
    },
    /// More nested messages, strings and byte lists than [`RECORD_PARTS_MAX`].
    #[error("{message} holds more than {RECORD_PARTS_MAX} parts")]
    TooManyParts {
        /// CRIU's name of the innermost message.
        message: &'static str,
    },
    /// Messages nest deeper than [`DEPTH_MAX`].
    #[error("{message} nests deeper than {DEPTH_MAX} messages")]
    TooDeep {
        /// CRIU's name of the innermost message.
        message: &'static str,
    },
}

/// Checks the wire bytes of one message of type `M` and of all messages in it.
pub fn check<M: Checked>(bytes: &[u8]) -> Result<(), RecordFault> {
    let mut parts = RECORD_PARTS_MAX;
    check_message(M::schema(), bytes, DEPTH_MAX, &mut parts)
}

fn check_message(
    schema: &'static Schema,
    bytes: &[u8],
    depth: u32,
    parts: &mut u32,
) -> Result<(), RecordFault> {
    let message = schema.name;
    let depth = depth.checked_sub(1).ok_or(RecordFault::TooDeep { message })?;
    let mut seen = 0u64;
    let mut fields = Fields { bytes, offset: 0 };
    while fields.offset < bytes.len() {
        let offset = fields.offset;
        let (number, payload) = fields.read().ok_or(RecordFault::Malformed { message, offset })?;
        if let Some(index) = schema.required.iter().position(|(required, _)| *required == number) {
            seen |= 1 << index;
        }
        if let Some(payload) = payload {
            *parts = parts.checked_sub(1).ok_or(RecordFault::TooManyParts { message })?;
            if let Some((_, nested)) = schema.nested.iter().find(|(field, _)| *field == number) {
                check_message(nested(), payload, depth, parts)?;
            }
        }
    }
    match schema.required.iter().enumerate().find(|(index, _)| seen & (1 << index) == 0) {
        Some((_, (_, field))) => Err(RecordFault::Missing { message, field }),
        None => Ok(()),
    }
}

/// Walks the fields of one message.
struct Fields<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Fields<'a> {
    /// Number of the next field and, if it is length-delimited, its payload. `None` if the bytes are malformed.
    fn read(&mut self) -> Option<(u32, Option<&'a [u8]>)> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number != 0)?;
        let payload = match key & 7 {
            0 => {
                self.varint()?;
                None
            }
            1 => self.take(8).map(|_| None)?,
            2 => {
                let len = self.varint()?;
                Some(self.take(len)?)
            }
            5 => self.take(4).map(|_| None)?,
            // Groups (3 and 4) are in none of CRIU's messages.
            _ => return None,
        };
        Some((number, payload))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.offset)?;
            self.offset += 1;
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let end = self.offset.checked_add(usize::try_from(len).ok()?)?;
        let taken = self.bytes.get(self.offset..end)?;
        self.offset = end;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::image::cgroup::CgroupDirEntry;
    use crate::image::core::CoreEntry;
    use crate::image::mm::MmEntry;
    use crate::image::pstree::PstreeEntry;
    use crate::image::vma::VmaEntry;

    #[test]
    fn required_zeros_are_written() {
        let bytes = PstreeEntry::default().encode_to_vec();
        assert_eq!(bytes, [8, 0, 16, 0, 24, 0, 32, 0]);
        check::<PstreeEntry>(&bytes).unwrap();
        check::<MmEntry>(&MmEntry::default().encode_to_vec()).unwrap();
        check::<CoreEntry>(&CoreEntry::default().encode_to_vec()).unwrap();
    }

    #[test]
    fn each_missing_field_is_named() {
        let bytes = PstreeEntry::default().encode_to_vec();
        for (index, field) in ["pid", "ppid", "pgid", "sid"].into_iter().enumerate() {
            let cut = [&bytes[..index * 2], &bytes[index * 2 + 2..]].concat();
            let fault = check::<PstreeEntry>(&cut).unwrap_err();
            assert_eq!(fault, RecordFault::Missing { message: "pstree_entry", field });
        }
    }

    #[test]
    fn a_missing_field_of_a_nested_message_is_found() {
        let mut bytes = MmEntry::default().encode_to_vec();
        let vma = VmaEntry::default().encode_to_vec();
        bytes.extend([14 << 3 | 2, (vma.len() - 2) as u8]);
        bytes.extend(&vma[2..]);
        let fault = check::<MmEntry>(&bytes).unwrap_err();
        assert_eq!(fault.to_string(), "required field vma_entry.start is missing");
    }

    #[test]
    fn depth_and_parts_are_bounded() {
        let mut bytes = CgroupDirEntry::default().encode_to_vec();
        for _ in 0..DEPTH_MAX {
            let mut outer = CgroupDirEntry::default().encode_to_vec();
            outer.push(2 << 3 | 2);
            prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.extend(bytes);
            bytes = outer;
        }
        assert_eq!(
            check::<CgroupDirEntry>(&bytes),
            Err(RecordFault::TooDeep { message: "cgroup_dir_entry" })
        );
        let parts: Vec<u8> = [15 << 3 | 2, 0].repeat(RECORD_PARTS_MAX as usize + 1);
        assert_eq!(check::<PstreeEntry>(&parts), Err(RecordFault::TooManyParts { message: "pstree_entry" }));
    }

    #[test]
    fn groups_and_bad_varints_are_refused() {
        for bytes in [&[11u8][..], &[12], &[8], &[8, 0x80], &[0, 0], &[10, 5, 0], &[9, 0], &[13, 0, 0]] {
            assert!(matches!(check::<PstreeEntry>(bytes), Err(RecordFault::Malformed { .. })), "{bytes:?}");
        }
        let long = [&[8u8][..], &[0xff; 9], &[2]].concat();
        assert!(matches!(check::<PstreeEntry>(&long), Err(RecordFault::Malformed { .. })));
    }

    /// A default message holds its required fields and nothing else, as prost sees them.
    fn required_as_prost_sees_them<M: Checked>() {
        let schema = M::schema();
        let bytes = M::default().encode_to_vec();
        let mut fields = Fields { bytes: &bytes, offset: 0 };
        let mut numbers = Vec::new();
        while fields.offset < bytes.len() {
            numbers.push(fields.read().unwrap().0);
        }
        let required: Vec<u32> = schema.required.iter().map(|(number, _)| *number).collect();
        assert_eq!(required, numbers, "{}", schema.name);
        assert!(required.len() <= 64, "{} fits the scan's bit set", schema.name);
        check::<M>(&bytes).unwrap();
    }

    macro_rules! every_message {
        ($($room:ident: $($message:ident)+;)+) => {
            $($(required_as_prost_sees_them::<crate::image::$room::$message>();)+)+
        };
    }

    #[test]
    fn schemas_and_structs_require_the_same_fields() {
        every_message! {
            cgroup: CgroupPerms CgroupPropEntry CgroupDirEntry CgControllerEntry CgMemberEntry CgSetEntry CgroupEntry;
            core: TaskCoreEntry TaskKobjIdsEntry ThreadSasEntry ThreadCoreEntry TaskRlimitsEntry CoreEntry;
            core_x86: UserX86RegsEntry UserX86CetEntry UserX86XsaveEntry UserX86FpregsEntry UserDescT ThreadInfoX86;
            cpuinfo: CpuinfoX86Entry CpuinfoEntry;
            creds: CredsEntry;
            eventfd: EventfdFileEntry;
            eventpoll: EventpollTfdEntry EventpollFileEntry;
            ext_file: ExtFileEntry;
            fdinfo: FdinfoEntry FileEntry;
            fh: FhEntry;
            fifo: FifoEntry;
            file_lock: FileLockEntry;
            fown: FownEntry;
            fs: FsEntry;
            fsnotify: InotifyWdEntry InotifyFileEntry FanotifyInodeMarkEntry FanotifyMountMarkEntry FanotifyMarkEntry FanotifyFileEntry;
            ghost_file: GhostFileEntry GhostChunkEntry;
            inventory: PluginsEntry InventoryEntry;
            memfd: MemfdFileEntry MemfdInodeEntry;
            mm: AioRingEntry MmEntry;
            ns: NsFileEntry;
            pagemap: PagemapHead PagemapEntry;
            pidfd: PidfdEntry;
            pidns: PidnsEntry;
            pipe: PipeEntry;
            pipe_data: PipeDataEntry;
            pstree: PstreeEntry;
            regfile: RegFileEntry;
            remap_file_path: RemapFilePathEntry;
            rlimit: RlimitEntry;
            rseq: RseqEntry;
            sa: SaEntry;
            seccomp: SeccompFilter SeccompEntry;
            siginfo: SiginfoEntry SignalQueueEntry;
            signalfd: SignalfdEntry;
            sk_opts: SkOptsEntry;
            sk_packet: ScmEntry SkPacketEntry;
            sk_unix: FilePermsEntry UnixSkEntry;
            stats: DumpStatsEntry RestoreStatsEntry StatsEntry;
            time: Timeval;
            timens: Timespec TimensEntry;
            timer: ItimerEntry PosixTimerEntry TaskTimersEntry;
            timerfd: TimerfdEntry;
            tty: WinsizeEntry TermiosEntry TtyPtyEntry TtyDataEntry TtyInfoEntry TtyFileEntry;
            userns: UidGidExtent UsernsEntry;
            utsns: UtsnsEntry;
            vma: VmaEntry;
        }
    }
}
