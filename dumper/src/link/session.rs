//! What may be asked of a session besides its rounds: open, the hand-over, status, resolve, close.

use godwit_wire::control::{
    Abort, CloseSession, Commit, OpenSession, Restore, SessionOpened, SessionQuery, SessionResolve,
    SessionResolved,
};
use godwit_wire::frame::SessionId;
use godwit_wire::session::{Reply, Request};

use super::error::LinkError;
use super::sink::RemoteSink;
use super::{Inner, Link};

pub use godwit_wire::control::{Decision, Done, RestorePidns, Restored, SessionStatus};

/// What a session is opened with.
pub type SessionWish = OpenSession;

impl Link {
    /// Opens a session and its lanes.
    ///
    /// # Errors
    /// [`LinkError::Session`] with the server's code when it refuses; [`LinkError::Quic`] when a further connection
    /// cannot be made.
    pub fn open_session(&self, wish: SessionWish) -> Result<RemoteSink, LinkError> {
        let name = wish.name.clone();
        let opened: SessionOpened = self.ask(Request::Open(wish), |inner, reply| match reply {
            Reply::SessionOpened(opened) => Ok(opened),
            other => Err(inner.unexpected(&other)),
        })?;
        RemoteSink::open(self.clone(), name, opened)
    }

    /// Restores the prepared final set at the server; the tree is held there and does not run. Another thread may
    /// call [`Link::abort`] meanwhile.
    ///
    /// # Errors
    /// [`LinkError::RestoreFailed`]: nothing of it is left, the source may run on. After any other error but
    /// [`LinkError::Session`] the server's state is not known: ask for [`Link::abort`], or resolve later.
    pub fn restore(&self) -> Result<Restored, LinkError> {
        self.restore_as(false)
    }

    /// As [`Link::restore`], for a source that is dead already: waits also after a signal asked for the end.
    ///
    /// # Errors
    /// As [`Link::restore`], but for the source.
    pub fn restore_the_dead(&self) -> Result<Restored, LinkError> {
        self.restore_as(true)
    }

    fn restore_as(&self, is_patient: bool) -> Result<Restored, LinkError> {
        let limit = self.inner.options.limits.restore;
        let reply = self.inner.call_as(Request::Restore(Restore {}), limit, is_patient)?;
        match reply {
            Reply::Restored(restored) => Ok(restored),
            Reply::RestoreFailed(failed) => Err(LinkError::RestoreFailed {
                peer: self.peer(),
                reason: failed.reason,
                log_tail: failed.log_tail,
            }),
            other => Err(self.inner.unexpected(&other)),
        }
    }

    /// The source tree is dead: lets the restored one run. `token` is the one in force in the source's journal.
    ///
    /// # Errors
    /// Whatever the error, the source stays dead; [`LinkError::ReleaseFailed`] says what to do.
    pub fn commit(&self, token: u64) -> Result<Done, LinkError> {
        let reply = self.inner.call(Request::Commit(Commit { token }), self.inner.options.limits.commit)?;
        match reply {
            Reply::Done(done) => Ok(done),
            Reply::Failed(failed) => Err(LinkError::ReleaseFailed {
                peer: self.peer(),
                reason: failed.reason,
                log_tail: failed.log_tail,
            }),
            other => Err(self.inner.unexpected(&other)),
        }
    }

    /// Undoes the hand-over: when this returns, nothing of the tree is left at the server but images.
    ///
    /// # Errors
    /// The source may only run on after success.
    pub fn abort(&self, reason: &str) -> Result<(), LinkError> {
        let abort = Request::Abort(Abort { reason: reason.to_owned() });
        match self.inner.call(abort, self.inner.options.limits.commit)? {
            Reply::Aborted(_) => Ok(()),
            other => Err(self.inner.unexpected(&other)),
        }
    }

    /// Ends the session with what is sealed.
    ///
    /// # Errors
    /// [`LinkError`] when the server does not confirm; what was acknowledged stays.
    pub fn close_session(&self) -> Result<(), LinkError> {
        self.ask(Request::Close(CloseSession {}), |inner, reply| match reply {
            Reply::SessionClosed(_) => Ok(()),
            other => Err(inner.unexpected(&other)),
        })
    }

    /// Asks how a session stands, by id or by name; on a link without a session of its own.
    ///
    /// # Errors
    /// [`LinkError::Session`] with code `NoSession` when the server has no journal of it.
    pub fn status(&self, id: Option<SessionId>, name: &str) -> Result<SessionStatus, LinkError> {
        let query = SessionQuery { session_id: id.map_or(0, |id| id.0), name: name.to_owned() };
        self.ask(Request::Query(query), |inner, reply| match reply {
            Reply::SessionStatus(status) => Ok(status),
            other => Err(inner.unexpected(&other)),
        })
    }

    /// Decides a session; on a link without a session of its own. `token` is the raised one of the source's
    /// journal, `proof` the state that journal is in.
    ///
    /// # Errors
    /// [`LinkError::Session`] with the server's code when its journal forbids the decision.
    pub fn resolve(
        &self,
        id: SessionId,
        token: u64,
        decision: Decision,
        forced: bool,
        proof: &str,
    ) -> Result<SessionResolved, LinkError> {
        let proof = proof.to_owned();
        let resolve = SessionResolve { session_id: id.0, token, decision: decision as i32, forced, proof };
        let reply = self.inner.call(Request::Resolve(resolve), self.inner.options.limits.restore)?;
        match reply {
            Reply::SessionResolved(resolved) => Ok(resolved),
            other => Err(self.inner.unexpected(&other)),
        }
    }

    fn ask<T>(
        &self,
        request: Request,
        pick: impl FnOnce(&Inner, Reply) -> Result<T, LinkError>,
    ) -> Result<T, LinkError> {
        let reply = self.inner.call(request, self.inner.options.limits.request)?;
        pick(&self.inner, reply)
    }
}
