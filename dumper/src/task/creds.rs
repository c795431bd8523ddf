//! Credentials of a thread (images/creds.proto; man 7 credentials, man 7 capabilities).

use godwit_wire::image::creds::CredsEntry;

use crate::procfs::status::Status;

/// The record. `securebits` is what the thread itself said (`PR_GET_SECUREBITS`).
pub fn entry(status: &Status, securebits: u32) -> CredsEntry {
    let caps = &status.capabilities;
    CredsEntry {
        uid: status.uid.real,
        gid: status.gid.real,
        euid: status.uid.effective,
        egid: status.gid.effective,
        suid: status.uid.saved,
        sgid: status.gid.saved,
        fsuid: status.uid.fs,
        fsgid: status.gid.fs,
        cap_inh: words(caps.inheritable),
        cap_prm: words(caps.permitted),
        cap_eff: words(caps.effective),
        cap_bnd: words(caps.bounding),
        cap_amb: words(caps.ambient),
        secbits: securebits,
        groups: status.groups.clone(),
        no_new_privs: Some(u32::from(status.no_new_privs)),
        ..CredsEntry::default()
    }
}

/// A capability set as two words, low word first.
fn words(set: u64) -> Vec<u32> {
    vec![set as u32, (set >> 32) as u32]
}
