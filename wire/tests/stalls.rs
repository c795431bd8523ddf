//! A peer that lives, so that the link does, and takes nothing of what is sent: whoever sends is not held up for ever.
#![allow(clippy::unwrap_used)]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_wire::control::{CHUNK_LEN_MAX, ImageChunk, ToClient, ToServer};
use godwit_wire::quic::{Identity, Incoming, Listener, QuicError, Tuning, connect, keys};

const LIMIT: Duration = Duration::from_millis(500);

#[test]
fn messages_that_nobody_takes_end_in_an_error() {
    let dir = tempfile::tempdir().unwrap();
    keys::init(dir.path(), &[]).unwrap();
    let listener =
        Listener::bind("127.0.0.1:0".parse().unwrap(), &Identity::server(dir.path()), &Tuning::default())
            .unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (over, wait) = mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let connection = listener.accept().unwrap();
        let Ok(Incoming::Control(_sender, mut receiver)) = connection.accept::<ToServer>() else { panic!() };
        let first = receiver.recv(Some(Duration::from_secs(5))).unwrap();
        let _ = wait.recv_timeout(Duration::from_secs(60));
        first.is_some()
    });
    let tuning = Tuning { stall_limit: LIMIT, ..Tuning::default() };
    let connection = connect(&address, &Identity::client(dir.path()), &tuning).unwrap();
    let (sender, _ears) = connection.open_control::<ToClient>().unwrap();
    let chunk = || ToServer::from(ImageChunk { bytes: Bytes::from(vec![7; CHUNK_LEN_MAX]) });
    let begun = Instant::now();
    // The windows hold some; then nothing moves.
    let error = std::iter::from_fn(|| Some(sender.send(&chunk()))).take(1000).find_map(Result::err).unwrap();
    assert!(matches!(error, QuicError::Silent { what: "room for a message", waited: LIMIT, .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    over.send(()).unwrap();
    assert!(server.join().unwrap(), "the link had worked before");
}
