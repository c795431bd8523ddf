//! The built program: it says where it listens, survives what comes to its port, loses nothing that it has
//! acknowledged, drains on SIGTERM, and says what is wrong when it cannot start.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_wire::control::{CloseSession, Envelope, Hello, OpenSession, ToClient};
use godwit_wire::frame::{Codec, FrameHeader, Join, Kind, Secret, SessionId};
use godwit_wire::image::manifest::{FileDigest, Manifest, PagesDigest};
use godwit_wire::image::pagemap;
use godwit_wire::plan::{PAGE_SIZE, PE_PRESENT, PageOwner, PageRun, PagesPlan, RoundKind, RoundPlan};
use godwit_wire::quic::{
    Connection, ControlReceiver, ControlSender, Identity, LaneSender, QuicError, Tuning, connect, keys,
};
use godwit_wire::session::{Reply, Request, SealRequest, Sender};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The program, killed when the test ends.
struct Program {
    child: Child,
    address: String,
}

impl Program {
    fn start(dir: &Path, more: &[&str]) -> Program {
        let mut child = command(dir, more).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}")).trim().to_owned();
        Program { child, address }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
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

fn command(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-page-server"));
    command.arg("serve").args(["--listen", "127.0.0.1:0"]);
    command.arg("--images-dir").arg(dir.join("images")).arg("--keys").arg(dir.join("keys"));
    command.arg("--state-dir").arg(dir.join("state")).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn fails(mut command: Command) -> String {
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
struct Client {
    connection: Connection,
    voice: ControlSender,
    ears: ControlReceiver<ToClient>,
    machine: Sender,
    lane: Option<LaneSender>,
}

impl Client {
    fn connect(dir: &Path, program: &Program) -> Result<Client, QuicError> {
        let identity = Identity::client(&dir.join("keys"));
        let connection = connect(&program.address, &identity, &Tuning::default())?;
        let (voice, ears) = connection.open_control()?;
        let mut client = Client { connection, voice, ears, machine: Sender::new(), lane: None };
        let hello = Hello { versions: vec![1], features: 3, tool_version: "test".into() };
        client.ask(Request::Hello(hello)).unwrap();
        Ok(client)
    }

    fn ask(&mut self, request: Request) -> Result<Reply, String> {
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

    fn tell(&mut self, request: Request) {
        self.machine.handle_local(request).unwrap();
        while let Some(message) = self.machine.poll_transmit() {
            self.voice.send(&message).unwrap();
        }
    }

    fn open(&mut self, name: &str) {
        let wish = OpenSession { name: name.into(), ..OpenSession::default() };
        let Ok(Reply::SessionOpened(opened)) = self.ask(Request::Open(wish)) else { panic!("not opened") };
        let mut lane = self.connection.open_lane().unwrap();
        let secret = Secret(opened.secret.as_ref().try_into().unwrap());
        lane.join(&Join { session_id: SessionId(opened.session_id), secret, lane: 0, epoch: opened.epoch })
            .unwrap();
        self.lane = Some(lane);
    }

    /// Begins round `number` and sends its pages; returns what seals it.
    fn fill(&mut self, name: &str, number: u32, kind: RoundKind) -> SealRequest {
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
            pages: vec![PagesDigest {
                pages_id: 1,
                nr_pages: 256,
                extents: vec![*blake3::hash(&pages).as_bytes()],
            }],
        };
        let manifest = manifest.encode().unwrap();
        SealRequest { round: number, epoch: accepted.epoch, frames: 1, manifest }
    }
}

fn lab() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    keys::init(&dir.path().join("keys"), &[]).unwrap();
    dir
}

fn names(dir: &Path, session: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("images").join(session)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn sigterm_lets_the_open_session_end_and_exits_0() {
    let dir = lab();
    let mut program = Program::start(dir.path(), &[]);
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    let seal = client.fill("web", 1, RoundKind::Final);
    program.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(program.wait(Duration::from_millis(100)).is_none(), "it did not wait for the session");
    let mut late = Client::connect(dir.path(), &program).unwrap();
    let refused = late.ask(Request::Open(OpenSession { name: "late".into(), ..OpenSession::default() }));
    assert!(refused.as_ref().is_err_and(|why| why.contains("draining")), "{refused:?}");
    let prepared = client.ask(Request::Seal(seal));
    assert!(matches!(prepared, Ok(Reply::Prepared(_))), "{prepared:?}");
    client.ask(Request::Close(CloseSession {})).unwrap();
    let status = program.wait(Duration::from_secs(10)).expect("it ends with its last session");
    assert_eq!(status.code(), Some(0));
    assert_eq!(names(dir.path(), "web"), ["final"]);
}

#[test]
fn sigterm_does_not_wait_longer_than_it_may() {
    let dir = lab();
    let mut program = Program::start(dir.path(), &["--drain-timeout", "1"]);
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    client.fill("web", 1, RoundKind::Round);
    program.signal(Signal::SIGINT);
    assert_eq!(program.wait(Duration::from_secs(8)).expect("it ends").code(), Some(0));
}

#[test]
fn a_server_killed_in_mid_round_keeps_sealed_rounds_and_clears_the_rest() {
    let dir = lab();
    let mut program = Program::start(dir.path(), &[]);
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    let seal = client.fill("web", 1, RoundKind::Round);
    assert!(matches!(client.ask(Request::Seal(seal)), Ok(Reply::RoundSealed(_))));
    client.fill("web", 2, RoundKind::Round);
    program.signal(Signal::SIGKILL);
    program.wait(Duration::from_secs(5)).expect("killed");
    assert_eq!(names(dir.path(), "web"), [".staging-round-0002", "round-0001"]);
    let program = Program::start(dir.path(), &[]);
    assert_eq!(names(dir.path(), "web"), ["round-0001"]);
    let mut again = Client::connect(dir.path(), &program).unwrap();
    let refused = again.ask(Request::Open(OpenSession { name: "web".into(), ..OpenSession::default() }));
    assert!(
        refused.as_ref().is_err_and(|why| why.contains("name taken") && why.contains("--name")),
        "{refused:?}"
    );
}

#[test]
fn half_open_handshakes_do_not_keep_others_out() {
    let dir = lab();
    let program = Program::start(dir.path(), &[]);
    // First packets whose senders never go on: each from its own socket, with a version that the server speaks.
    let sockets: Vec<_> = (0..200u16)
        .map(|index| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut packet = vec![0u8; 1200];
            packet[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
            packet[6..8].copy_from_slice(&index.to_le_bytes());
            socket.send_to(&packet, &program.address).unwrap();
            socket
        })
        .collect();
    let mut client = Client::connect(dir.path(), &program).unwrap();
    client.open("web");
    drop(sockets);
}

#[test]
fn what_keeps_it_from_starting_is_said() {
    let dir = lab();
    let none = tempfile::tempdir().unwrap();
    let mut no_keys = Command::new(env!("CARGO_BIN_EXE_godwit-page-server"));
    no_keys.args(["serve", "--listen", "127.0.0.1:0", "--images-dir"]).arg(dir.path().join("images"));
    no_keys.arg("--keys").arg(none.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let text = fails(no_keys);
    assert!(text.contains("godwit keys init") && text.contains(".pem"), "{text}");
    let running = Program::start(dir.path(), &[]);
    let text = fails(command(dir.path(), &[]));
    assert!(text.contains("in use by a living server"), "{text}");
    let other = lab();
    let mut same_port = Command::new(env!("CARGO_BIN_EXE_godwit-page-server"));
    same_port.args(["serve", "--listen", &running.address, "--images-dir"]).arg(other.path().join("images"));
    same_port.arg("--keys").arg(other.path().join("keys")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let text = fails(same_port);
    assert!(text.contains(&running.address), "{text}");
    let text = fails(command(other.path(), &["--restore", "--criu", "/nonexistent/criu"]));
    assert!(text.contains("GODWIT_CRIU") && text.contains("/nonexistent/criu"), "{text}");
}
