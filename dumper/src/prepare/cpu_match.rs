//! Whether the processor where a process is restored does for one that ran here.
//!
//! A program asks its processor once what it can do, and goes by the answer for the rest of its life: the C library
//! chooses its `memcpy`, the loader the size of its frames. So the destination must have every instruction that was there,
//! and registers of the same kinds and sizes. What is compared, and under which names, is `--cpu-cap` as CRIU has it
//! (criu/arch/x86/cpu.c); CRIU does so within a restore that was given the option, this room before anything is touched.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use godwit_page_server::cpu::{self, CAPABILITY_VER, CAPABILITY_WORDS, word};
use godwit_wire::control::HelloAck;
use godwit_wire::image::cpuinfo::{CpuinfoEntry, CpuinfoX86Entry, CpuinfoX86Vendor};
use godwit_wire::image::{ImageError, ImageKind, ImageWriter};

use crate::refusal::{Findings, Subject};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCap {
    /// The registers of the extended state, and the sizes of their area.
    pub fpu: bool,
    /// Instructions that a program may use.
    pub ins: bool,
    /// Everything that the processor says of itself.
    pub cpu: bool,
}

impl CpuCap {
    /// Nothing.
    pub const NONE: CpuCap = CpuCap { fpu: false, ins: false, cpu: false };
    /// Everything.
    pub const ALL: CpuCap = CpuCap { fpu: true, ins: true, cpu: true };
}

impl Default for CpuCap {
    /// CRIU's own default.
    fn default() -> CpuCap {
        CpuCap { cpu: false, ..CpuCap::ALL }
    }
}

impl FromStr for CpuCap {
    type Err = String;

    /// CRIU's words, divided by commas: each adds to the default, with `^` before it takes away.
    fn from_str(text: &str) -> Result<CpuCap, String> {
        let mut cap = CpuCap::default();
        for part in text.split(',') {
            let word = part.trim_start_matches('^');
            let is_wanted = (part.len() - word.len()).is_multiple_of(2);
            match word {
                "fpu" => cap.fpu = is_wanted,
                "ins" => cap.ins = is_wanted,
                "cpu" => cap.cpu = is_wanted,
                "all" => cap = if is_wanted { CpuCap::ALL } else { CpuCap::NONE },
                "none" => cap = if is_wanted { CpuCap::NONE } else { CpuCap::ALL },
                _ => return Err(format!("{word:?} is none of fpu, ins, cpu, all, none")),
            }
        }
        Ok(cap)
    }
}

impl fmt::Display for CpuCap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [(self.fpu, "fpu"), (self.ins, "ins"), (self.cpu, "cpu")];
        let words: Vec<&str> =
            words.iter().filter(|(is_there, _)| *is_there).map(|(_, word)| *word).collect();
        f.write_str(if words.is_empty() { "none" } else { "" })?;
        f.write_str(&words.join(","))
    }
}

/// Features that programs use, by word, bit and the kernel's name for them (`/proc/cpuinfo`): those that CRIU compares as
/// `ins`, and a few more that it leaves out: fma, lahf_lm, avx512ifma, clwb.
const INSTRUCTIONS: [(usize, u32, &str); 86] = [
    (word::LEAF_1_EDX, 0, "fpu"),
    (word::LEAF_1_EDX, 4, "tsc"),
    (word::LEAF_1_EDX, 8, "cx8"),
    (word::LEAF_1_EDX, 11, "sep"),
    (word::LEAF_1_EDX, 15, "cmov"),
    (word::LEAF_1_EDX, 19, "clflush"),
    (word::LEAF_1_EDX, 23, "mmx"),
    (word::LEAF_1_EDX, 24, "fxsr"),
    (word::LEAF_1_EDX, 25, "sse"),
    (word::LEAF_1_EDX, 26, "sse2"),
    (word::LEAF_8000_0001_EDX, 11, "syscall"),
    (word::LEAF_8000_0001_EDX, 22, "mmxext"),
    (word::LEAF_8000_0001_EDX, 27, "rdtscp"),
    (word::LEAF_8000_0001_EDX, 30, "3dnowext"),
    (word::LEAF_8000_0001_EDX, 31, "3dnow"),
    (word::LINUX_1, 16, "rep_good"),
    (word::LINUX_1, 20, "nopl"),
    (word::LEAF_1_ECX, 0, "pni"),
    (word::LEAF_1_ECX, 1, "pclmulqdq"),
    (word::LEAF_1_ECX, 3, "monitor"),
    (word::LEAF_1_ECX, 9, "ssse3"),
    (word::LEAF_1_ECX, 12, "fma"),
    (word::LEAF_1_ECX, 13, "cx16"),
    (word::LEAF_1_ECX, 19, "sse4_1"),
    (word::LEAF_1_ECX, 20, "sse4_2"),
    (word::LEAF_1_ECX, 22, "movbe"),
    (word::LEAF_1_ECX, 23, "popcnt"),
    (word::LEAF_1_ECX, 25, "aes"),
    (word::LEAF_1_ECX, 26, "xsave"),
    (word::LEAF_1_ECX, 27, "osxsave"),
    (word::LEAF_1_ECX, 28, "avx"),
    (word::LEAF_1_ECX, 29, "f16c"),
    (word::LEAF_1_ECX, 30, "rdrand"),
    (word::LEAF_8000_0001_ECX, 0, "lahf_lm"),
    (word::LEAF_8000_0001_ECX, 5, "abm"),
    (word::LEAF_8000_0001_ECX, 6, "sse4a"),
    (word::LEAF_8000_0001_ECX, 7, "misalignsse"),
    (word::LEAF_8000_0001_ECX, 8, "3dnowprefetch"),
    (word::LEAF_8000_0001_ECX, 11, "xop"),
    (word::LEAF_8000_0001_ECX, 16, "fma4"),
    (word::LEAF_8000_0001_ECX, 21, "tbm"),
    (word::LEAF_7_EBX, 0, "fsgsbase"),
    (word::LEAF_7_EBX, 3, "bmi1"),
    (word::LEAF_7_EBX, 4, "hle"),
    (word::LEAF_7_EBX, 5, "avx2"),
    (word::LEAF_7_EBX, 8, "bmi2"),
    (word::LEAF_7_EBX, 9, "erms"),
    (word::LEAF_7_EBX, 11, "rtm"),
    (word::LEAF_7_EBX, 14, "mpx"),
    (word::LEAF_7_EBX, 16, "avx512f"),
    (word::LEAF_7_EBX, 17, "avx512dq"),
    (word::LEAF_7_EBX, 18, "rdseed"),
    (word::LEAF_7_EBX, 19, "adx"),
    (word::LEAF_7_EBX, 21, "avx512ifma"),
    (word::LEAF_7_EBX, 23, "clflushopt"),
    (word::LEAF_7_EBX, 24, "clwb"),
    (word::LEAF_7_EBX, 26, "avx512pf"),
    (word::LEAF_7_EBX, 27, "avx512er"),
    (word::LEAF_7_EBX, 28, "avx512cd"),
    (word::LEAF_7_EBX, 29, "sha_ni"),
    (word::LEAF_7_EBX, 30, "avx512bw"),
    (word::LEAF_7_EBX, 31, "avx512vl"),
    (word::LEAF_D_1_EAX, 0, "xsaveopt"),
    (word::LEAF_D_1_EAX, 1, "xsavec"),
    (word::LEAF_D_1_EAX, 2, "xgetbv1"),
    (word::LEAF_D_1_EAX, 3, "xsaves"),
    (word::LEAF_7_ECX, 1, "avx512vbmi"),
    (word::LEAF_7_ECX, 6, "avx512_vbmi2"),
    (word::LEAF_7_ECX, 8, "gfni"),
    (word::LEAF_7_ECX, 9, "vaes"),
    (word::LEAF_7_ECX, 10, "vpclmulqdq"),
    (word::LEAF_7_ECX, 11, "avx512_vnni"),
    (word::LEAF_7_ECX, 12, "avx512_bitalg"),
    (word::LEAF_7_ECX, 13, "tme"),
    (word::LEAF_7_ECX, 14, "avx512_vpopcntdq"),
    (word::LEAF_7_ECX, 22, "rdpid"),
    (word::LEAF_8000_0008_EBX, 0, "clzero"),
    (word::LEAF_7_EDX, 2, "avx512_4vnniw"),
    (word::LEAF_7_EDX, 3, "avx512_4fmaps"),
    // Told of in the same words, used by programs, and younger than CRIU's list.
    (word::LEAF_7_ECX, 25, "cldemote"),
    (word::LEAF_7_ECX, 27, "movdiri"),
    (word::LEAF_7_ECX, 28, "movdir64b"),
    (word::LEAF_7_EDX, 8, "avx512_vp2intersect"),
    (word::LEAF_7_EDX, 22, "amx_bf16"),
    (word::LEAF_7_EDX, 24, "amx_tile"),
    (word::LEAF_7_EDX, 25, "amx_int8"),
];

/// What CRIU wants of the words for `fpu`, beside the mask and the sizes.
const STATE: [&str; 4] = ["fpu", "fxsr", "osxsave", "xsaves"];

/// Components of the extended state by their bit in XCR0 (Intel SDM volume 1, 13.1).
const COMPONENTS: [(u32, &str); 9] = [
    (0, "x87"),
    (1, "sse"),
    (2, "avx"),
    (3, "mpx bounds"),
    (4, "mpx configuration"),
    (5, "avx-512 masks"),
    (6, "avx-512 upper halves"),
    (7, "avx-512 upper registers"),
    (9, "protection keys"),
];

/// This machine's processor, and what of it is asked for.
#[derive(Clone, Debug)]
pub struct Processor {
    here: Option<CpuinfoX86Entry>,
    cap: CpuCap,
}

impl Processor {
    /// Asks it.
    pub fn probe(cap: CpuCap) -> Processor {
        Processor { here: cpu::probe(), cap }
    }

    /// `cpuinfo.img`; nothing where it is not asked for, or the maker is one that CRIU does not know.
    ///
    /// # Errors
    /// Never for a record of this size; the signature is that of every image.
    pub fn image(&self) -> Result<Option<(String, Bytes)>, ImageError> {
        let Some(here) = self.here.as_ref().filter(|_| self.cap != CpuCap::NONE) else { return Ok(None) };
        let entry = CpuinfoEntry { x86_entry: vec![here.clone()] };
        Ok(Some((ImageKind::Cpuinfo.file_name(0), ImageWriter::single(ImageKind::Cpuinfo, &entry)?)))
    }

    /// Notes what a page server's processor lacks for a process that ran here.
    pub fn check(&self, subject: &Subject, server: &HelloAck, findings: &mut Findings) {
        let (here, there) = (self.here.as_ref(), server.cpu.as_deref().filter(|there| is_comparable(there)));
        let (Some(here), Some(there)) = (here, there) else {
            if self.cap != CpuCap::NONE {
                tracing::info!(
                    "the processors are not compared: one of both does not tell, or not in these words"
                );
            }
            return;
        };
        for what in lacks(here, there, self.cap) {
            findings.refuse(
                subject.clone(),
                format!("the page server's processor ({}) {what}", name_of(there)),
                "move it to a machine with a processor like this one, or leave that out of --cpu-cap (none: compare \
                 nothing) if the program does without",
            );
        }
    }
}

fn name_of(cpu: &CpuinfoX86Entry) -> String {
    // Of a peer: short, and no control characters.
    let name = cpu.model_id.as_deref().unwrap_or_default().chars().filter(|c| !c.is_control()).take(48);
    let name: String = name.collect();
    if name.is_empty() { format!("family {} model {}", cpu.cpu_family, cpu.model) } else { name }
}

/// Whether the words are those that are known here.
fn is_comparable(cpu: &CpuinfoX86Entry) -> bool {
    cpu.capability_ver == CAPABILITY_VER && cpu.capability.len() == CAPABILITY_WORDS
}

/// What a destination lacks for a process of this source, each as the end of a sentence about its processor. Both must
/// have [`CAPABILITY_WORDS`] words.
pub fn lacks(source: &CpuinfoX86Entry, destination: &CpuinfoX86Entry, cap: CpuCap) -> Vec<String> {
    let mut found = Vec::new();
    let bit = |cpu: &CpuinfoX86Entry, word: usize, bit: u32| {
        cpu.capability.get(word).is_some_and(|value| value & 1 << bit != 0)
    };
    let is_missing =
        |&&(word, n, _): &&(usize, u32, &str)| bit(source, word, n) && !bit(destination, word, n);
    let is_state = |name: &str| STATE.contains(&name);
    let asked = |name: &str| cap.ins || (cap.fpu && is_state(name));
    let missing: Vec<&str> =
        INSTRUCTIONS.iter().filter(is_missing).map(|(.., name)| *name).filter(|name| asked(name)).collect();
    if !missing.is_empty() {
        found.push(format!("lacks {}", missing.join(", ")));
    }
    if cap.fpu {
        found.extend(lacks_of_state(source, destination));
    }
    if cap.cpu {
        found.extend(differs(source, destination));
    }
    found
}

/// Registers that would have no place, and areas of another size.
fn lacks_of_state(source: &CpuinfoX86Entry, destination: &CpuinfoX86Entry) -> Vec<String> {
    let mut found = Vec::new();
    // What one of both does not tell is taken for the same, as CRIU takes it.
    if let (Some(ours), Some(theirs)) = (source.xfeatures_mask, destination.xfeatures_mask)
        && ours & !theirs != 0
    {
        let missing = ours & !theirs;
        let named = COMPONENTS.iter().filter(|(bit, _)| missing & 1 << bit != 0).map(|(_, name)| *name);
        let named = named.collect::<Vec<_>>().join(", ");
        found.push(format!("has no such registers: {named} (mask {missing:#x})"));
    }
    let sizes = [
        ("in use", source.xsave_size, destination.xsave_size),
        ("at most", source.xsave_size_max, destination.xsave_size_max),
    ];
    for (which, ours, theirs) in sizes {
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && ours != theirs
        {
            found.push(format!(
                "keeps registers in an area of another size ({which}: {theirs} bytes there, {ours} here), which a program \
                 asks for once and goes by"
            ));
        }
    }
    found
}

/// Words that are not the same, for the strict comparison.
fn differs(source: &CpuinfoX86Entry, destination: &CpuinfoX86Entry) -> Option<String> {
    let pairs = source.capability.iter().zip(&destination.capability).enumerate();
    let words: Vec<String> = pairs
        .filter(|(_, (ours, theirs))| ours != theirs)
        .map(|(number, (ours, theirs))| format!("word {number}: {theirs:#010x} there, {ours:#010x} here"))
        .collect();
    (!words.is_empty())
        .then(|| format!("is not the same, which --cpu-cap cpu asks for ({})", words.join("; ")))
}

/// One line about a page server's processor, for `godwit doctor`.
///
/// # Errors
/// What it lacks, in words.
pub fn told(server: &HelloAck, cap: CpuCap) -> Result<String, String> {
    let Some(there) = server.cpu.as_deref() else {
        return Ok("it does not tell which it is; it is not compared".to_owned());
    };
    let maker = match CpuinfoX86Vendor::try_from(there.vendor_id) {
        Ok(CpuinfoX86Vendor::Intel) => "Intel",
        Ok(CpuinfoX86Vendor::Amd) => "AMD",
        _ => "another maker",
    };
    let processor = Processor::probe(cap);
    let mut findings = Findings::default();
    let subject = Subject::Process(nix::unistd::Pid::this());
    processor.check(&subject, server, &mut findings);
    let whys: Vec<String> = findings.refusals.into_iter().map(|refusal| refusal.why).collect();
    match whys.is_empty() {
        true => Ok(format!("{} ({maker}), compared: {cap}", name_of(there))),
        false => Err(whys.join("; ")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fake(set: &[&str]) -> CpuinfoX86Entry {
        let mut capability = vec![0; CAPABILITY_WORDS];
        for name in set {
            let (word, bit, _) = INSTRUCTIONS.iter().find(|(.., known)| known == name).unwrap();
            capability[*word] |= 1 << bit;
        }
        CpuinfoX86Entry {
            vendor_id: CpuinfoX86Vendor::Intel.into(),
            cpu_family: 6,
            capability_ver: CAPABILITY_VER,
            capability,
            model_id: Some("Fake \u{1b}[31mred".to_owned()),
            xfeatures_mask: Some(0b101),
            xsave_size: Some(832),
            xsave_size_max: Some(832),
            ..CpuinfoX86Entry::default()
        }
    }

    #[test]
    fn the_words_are_crius() {
        let cap = |text: &str| text.parse::<CpuCap>();
        assert_eq!(cap("fpu,ins").unwrap(), CpuCap::default());
        assert_eq!(cap("cpu").unwrap(), CpuCap::ALL);
        assert_eq!(cap("all").unwrap(), CpuCap::ALL);
        assert_eq!(cap("none").unwrap(), CpuCap::NONE);
        assert_eq!(cap("^none").unwrap(), CpuCap::ALL);
        assert_eq!(cap("^fpu").unwrap(), CpuCap { ins: true, ..CpuCap::NONE });
        assert_eq!(cap("all,^cpu,^ins").unwrap(), CpuCap { fpu: true, ..CpuCap::NONE });
        assert_eq!(cap("none,^^ins").unwrap(), CpuCap { ins: true, ..CpuCap::NONE });
        for wrong in ["", "x", "fpu,", "fpu ins", "fpuins"] {
            assert!(cap(wrong).is_err(), "{wrong:?}");
        }
        for text in ["none", "fpu", "fpu,ins,cpu"] {
            assert_eq!(cap(&format!("none,{text}")).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_more_is_fine() {
        let (old, new) = (fake(&["sse2", "avx", "fxsr"]), fake(&["sse2", "avx", "fxsr", "avx2", "bmi2"]));
        assert!(lacks(&old, &new, CpuCap::default()).is_empty());
        assert_eq!(lacks(&new, &old, CpuCap::default()), ["lacks avx2, bmi2"]);
        assert!(lacks(&new, &old, CpuCap::NONE).is_empty());
        assert!(lacks(&new, &old, "^ins".parse().unwrap()).is_empty(), "no feature of the state");
        let bare = fake(&["sse2"]);
        assert_eq!(lacks(&old, &bare, "^ins".parse().unwrap()), ["lacks fxsr"]);
        // The strict comparison takes no difference.
        assert!(lacks(&old, &new, CpuCap::ALL)[0].contains("word 9: 0x00000120 there, 0x00000000 here"));
        assert!(lacks(&old, &old, CpuCap::ALL).is_empty());
    }

    #[test]
    fn registers_and_sizes_must_be_the_same_both_ways() {
        let (small, mut large) = (fake(&["avx"]), fake(&["avx"]));
        (large.xfeatures_mask, large.xsave_size, large.xsave_size_max) =
            (Some(0b1110_0101), Some(2688), Some(2688));
        let found = lacks(&large, &small, CpuCap::default());
        assert!(
            found[0].contains("avx-512 masks, avx-512 upper halves, avx-512 upper registers (mask 0xe0)")
        );
        assert!(found[1].contains("in use: 832 bytes there, 2688 here"), "{found:?}");
        // More registers are fine, a larger area is not.
        let found = lacks(&small, &large, CpuCap::default());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|what| what.contains("another size")), "{found:?}");
        assert!(lacks(&small, &large, "^fpu".parse().unwrap()).is_empty());
    }

    #[test]
    fn a_server_is_refused_by_name_with_the_way_out() {
        let here = Processor { here: Some(fake(&["avx2"])), cap: CpuCap::default() };
        let subject = Subject::Process(nix::unistd::Pid::this());
        let check = |here: &Processor, cpu: Option<CpuinfoX86Entry>| {
            let (cpu, mut findings) = (cpu.map(Box::new), Findings::default());
            here.check(&subject, &HelloAck { cpu, ..HelloAck::default() }, &mut findings);
            findings.refusals.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let said = check(&here, Some(fake(&[])));
        assert!(said[0].contains("(Fake [31mred) lacks avx2") && said[0].contains("--cpu-cap"), "{said:?}");
        assert!(check(&here, None).is_empty(), "an older server");
        let hostile = CpuinfoX86Entry { capability: vec![0; 100_000], ..fake(&[]) };
        assert!(check(&here, Some(hostile)).is_empty(), "words that nobody knows");
        let any = Processor { cap: CpuCap::NONE, ..here };
        assert!(check(&any, Some(fake(&[]))).is_empty());
        assert_eq!(any.image().unwrap(), None);
    }

    #[test]
    fn every_feature_stands_once() {
        for (number, (word, bit, name)) in INSTRUCTIONS.iter().enumerate() {
            assert!(*word < CAPABILITY_WORDS && *bit < 32, "{name}");
            let others = &INSTRUCTIONS[number + 1..];
            assert!(!others.iter().any(|(w, b, n)| (w, b) == (word, bit) || n == name), "{name}");
        }
        assert!(STATE.iter().all(|name| INSTRUCTIONS.iter().any(|(.., known)| known == name)));
    }
}
