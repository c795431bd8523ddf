//! The built program, and a client by hand: one request, one answer.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_wire::control::{Envelope, Hello, OpenSession, ToClient};
use godwit_wire::frame::{Codec, FrameHeader, Join, Kind, Secret, SessionId};
use godwit_wire::image::extent::extent_hash;
use godwit_wire::image::manifest::{FileDigest, Manifest, PagesDigest};
use godwit_wire::image::{ImageKind, pagemap};
use godwit_wire::plan::{PAGE_SIZE, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan};
use godwit_wire::quic::{
    Connection, ControlReceiver, ControlSender, Identity, LaneSender, QuicError, Tuning, connect, keys,
};
use godwit_wire::session::{Reply, Request, SealRequest, Sender};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The program, killed when the test ends.
pub struct Program {
    pub child: Child,
    pub address: String,
}

impl Program {
    pub fn start(dir: &Path, more: &[&str]) -> Program {
        Self::start_with(dir, more, "")
    }

    /// Starts it with faults armed.
    pub fn start_with(dir: &Path, more: &[&str], fault: &str) -> Program {
        let mut child = command(dir, more).env("GODWIT_FAULT", fault).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}")).trim().to_owned();
        Program { child, address }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-page-server"));
    command.arg("serve").args(["--listen", "127.0.0.1:0"]);
    command.arg("--images-dir").arg(dir.join("images")).arg("--keys").arg(dir.join("keys"));
    command.arg("--state-dir").arg(dir.join("state")).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn fails(mut command: Command) -> String {
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it serves");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{text}");
    text
}

/// A client by hand: one request, one answer.
pub struct Client {
    pub connection: Connection,
    voice: ControlSender,
    ears: ControlReceiver<ToClient>,
    machine: Sender,
    lane: Option<LaneSender>,
}

impl Client {
    pub fn connect(dir: &Path, program: &Program) -> Result<Client, QuicError> {
        Self::connect_as(&Identity::client(&dir.join("keys")), program)
    }

    pub fn connect_as(identity: &Identity, program: &Program) -> Result<Client, QuicError> {
        let connection = connect(&program.address, identity, &Tuning::default())?;
        let (voice, ears) = connection.open_control()?;
        let mut client = Client { connection, voice, ears, machine: Sender::new(), lane: None };
        let hello = Hello { versions: vec![1], features: 3, tool_version: "test".into() };
        client.ask(Request::Hello(hello)).unwrap();
        Ok(client)
    }

    pub fn ask(&mut self, request: Request) -> Result<Reply, String> {
        self.tell(request);
        loop {
            let message = match self.ears.recv(Some(Duration::from_secs(20))) {
                Ok(Some(message)) => message,
                Ok(None) => return Err("the stream is over".into()),
                Err(error) => return Err(error.to_string()),
            };
            let name = message.name();
            if let Some(reply) =
                self.machine.handle_message(message).map_err(|error| format!("{name}: {error}"))?
            {
                return Ok(reply);
            }
        }
    }

    pub fn tell(&mut self, request: Request) {
        self.machine.handle_local(request).unwrap();
        while let Some(message) = self.machine.poll_transmit() {
            self.voice.send(&message).unwrap();
        }
    }

    pub fn open(&mut self, name: &str) -> SessionId {
        self.open_as(OpenSession { name: name.into(), ..OpenSession::default() })
    }

    pub fn open_as(&mut self, wish: OpenSession) -> SessionId {
        let Ok(Reply::SessionOpened(opened)) = self.ask(Request::Open(wish)) else { panic!("not opened") };
        let mut lane = self.connection.open_lane().unwrap();
        let secret = Secret(opened.secret.as_ref().try_into().unwrap());
        lane.join(&Join { session_id: SessionId(opened.session_id), secret, lane: 0, epoch: opened.epoch })
            .unwrap();
        self.lane = Some(lane);
        SessionId(opened.session_id)
    }

    /// Sends a directory that criu wrote as the final set, and prepares it.
    pub fn prepare(&mut self, name: &str, images: &Path) {
        let mut files = Vec::new();
        let (mut lists, mut contents) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(images).unwrap().flatten() {
            let (file, bytes) =
                (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
            match ImageKind::parse_name(&file) {
                Some((ImageKind::Pagemap, pid)) => {
                    let list = pagemap::decode(PageOwner::Task(pid as u32), &bytes).unwrap();
                    files.push(FileDigest::of(&file, &pagemap::encode(&list).unwrap()));
                    contents.push(Bytes::from(std::fs::read(images.join(list.pages_name())).unwrap()));
                    lists.push(list);
                }
                Some((ImageKind::Pages, _)) => {}
                _ => files.push(FileDigest::of(&file, &bytes)),
            }
        }
        let kind = RoundKind::Final;
        let plan = RoundPlan { round: 1, base_round: None, kind, pages: lists.clone() };
        let Ok(Reply::RoundAccepted(accepted)) = self.ask(Request::Begin(plan)) else {
            panic!("not accepted")
        };
        let (mut pages, mut frames) = (Vec::new(), 0);
        for (list, bytes) in lists.iter().zip(&contents) {
            let extents: Vec<_> = (0..bytes.len()).step_by(1 << 20).collect();
            let part = |at: usize| bytes.slice(at..bytes.len().min(at + (1 << 20)));
            for at in &extents {
                self.frame(accepted.epoch, list.pages_id, *at as u64 / PAGE_SIZE, part(*at));
                frames += 1;
            }
            let extents = extents.iter().map(|at| extent_hash(&part(*at))).collect();
            pages.push(PagesDigest {
                pages_id: list.pages_id,
                nr_pages: bytes.len() as u64 / PAGE_SIZE,
                extents,
            });
        }
        for digest in files.iter().filter(|digest| !digest.name.starts_with("pagemap-")) {
            let bytes = std::fs::read(images.join(&digest.name)).unwrap().into();
            self.tell(Request::Image { round: 1, name: digest.name.clone(), bytes });
        }
        let manifest = Manifest {
            session: name.into(),
            round: 1,
            base_round: None,
            kind,
            restore_options: vec![],
            root_pid: 1,
            dumped_at_us: 1,
            tool_version: "test".into(),
            files,
            pages,
        };
        let manifest = manifest.encode().unwrap();
        let prepared =
            self.ask(Request::Seal(SealRequest { round: 1, epoch: accepted.epoch, frames, manifest }));
        assert!(matches!(prepared, Ok(Reply::Prepared(_))), "{prepared:?}");
    }

    /// Sends slots of round 1 as they are.
    pub fn frame(&mut self, epoch: u32, pages_id: u32, first_slot: u64, pages: Bytes) {
        let header = FrameHeader {
            round: 1,
            epoch,
            pages_id,
            first_slot,
            pages: (pages.len() as u64 / PAGE_SIZE) as u32,
            kind: Kind::Data,
            codec: Codec::Raw,
            length: 0,
            checksum: 0,
        };
        let header = header.with_payload(Codec::Raw, &pages).unwrap();
        self.lane.as_mut().unwrap().send(&header, pages).unwrap();
    }

    /// Begins round `number` and sends its pages; returns what seals it.
    pub fn fill(&mut self, name: &str, number: u32, kind: RoundKind) -> SealRequest {
        let runs = vec![PageRun { vaddr: PAGE_SIZE, nr_pages: 256, flags: PE_PRESENT }];
        let list = PagesPlan { owner: PageOwner::Task(1), pages_id: 1, runs };
        let plan = RoundPlan { round: number, base_round: None, kind, pages: vec![list.clone()] };
        let Ok(Reply::RoundAccepted(accepted)) = self.ask(Request::Begin(plan)) else {
            panic!("not accepted")
        };
        let pages = Bytes::from(vec![number as u8; 256 * PAGE_SIZE as usize]);
        let header = FrameHeader {
            round: number,
            epoch: accepted.epoch,
            pages_id: 1,
            first_slot: 0,
            pages: 256,
            kind: Kind::Data,
            codec: Codec::Raw,
            length: 0,
            checksum: 0,
        };
        let header = header.with_payload(Codec::Raw, &pages).unwrap();
        self.lane.as_mut().unwrap().send(&header, pages.clone()).unwrap();
        let mut files = vec![FileDigest::of("pagemap-1.img", &pagemap::encode(&list).unwrap())];
        for name in ["inventory.img", "pstree.img"] {
            let bytes = Bytes::from_static(name.as_bytes());
            files.push(FileDigest::of(name, &bytes));
            self.tell(Request::Image { round: number, name: name.into(), bytes });
        }
        let manifest = Manifest {
            session: name.into(),
            round: number,
            base_round: None,
            kind,
            restore_options: vec![],
            root_pid: 1,
            dumped_at_us: 1,
            tool_version: "test".into(),
            files,
            pages: vec![PagesDigest { pages_id: 1, nr_pages: 256, extents: vec![extent_hash(&pages)] }],
        };
        let manifest = manifest.encode().unwrap();
        SealRequest { round: number, epoch: accepted.epoch, frames: 1, manifest }
    }
}

pub fn lab() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    keys::init(&dir.path().join("keys"), &[]).unwrap();
    dir
}

pub fn names(dir: &Path, session: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("images").join(session)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
