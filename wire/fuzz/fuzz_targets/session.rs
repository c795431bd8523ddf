//! Arbitrary control messages at both session machines: an error or a step, never a panic, and never a restore
//! of what was not prepared.
#![no_main]

use godwit_wire::control::{Envelope, HelloAck, RoundAccepted, SessionOpened, ToClient, ToServer, message_length};
use godwit_wire::session::{Receiver, Reply, Request, Sender};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (mut receiver, mut sender, mut rest) = (Receiver::new(), Sender::new(), bytes);
    while let Some((prefix, behind)) = rest.split_first_chunk::<4>() {
        let Ok(length) = message_length(*prefix) else { return };
        let Some(body) = behind.get(..length) else { return };
        rest = &behind[length..];
        if let Ok(message) = ToClient::from_wire(body) {
            let _ = sender.handle_message(message);
        }
        let Ok(message) = ToServer::from_wire(body) else { continue };
        let reply: Reply = match receiver.handle_message(message) {
            Err(_) => return,
            Ok(Some(Request::Hello(_))) => HelloAck { version: 1, ..HelloAck::default() }.into(),
            Ok(Some(Request::Open(_))) => SessionOpened { epoch: 1, ..SessionOpened::default() }.into(),
            Ok(Some(Request::Begin(plan))) => RoundAccepted { round: plan.round, epoch: 1 }.into(),
            Ok(Some(Request::Restore(_) | Request::Commit(_))) => panic!("nothing was prepared"),
            Ok(_) => continue,
        };
        receiver.handle_local(reply).expect("an answer to what was asked");
    }
});
