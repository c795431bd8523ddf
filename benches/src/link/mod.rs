//! Links between the source and the destination of a run: what is on them, and what went over them.
//!
//! Every link lies in network namespaces of its own, also the loopback, so that its counters count one run alone.
//! Victim, dumper and CRIU run in the source's namespace, servers in the destination's: both dumpers want the victim
//! in their own. A namespace lives as long as a process of the suite holds it, and devices and queues go with it.
//!
//! A new kind of link: a variant of [`LinkKind`], its name and title, and its making in [`LinkKind::open`].

mod counters;
mod loopback;
mod namespace;
mod netem;
mod netns;

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

pub use counters::{Counters, Timeline};
use namespace::Namespace;

pub use namespace::hold;
pub use netem::Far;

/// What lies between the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// One host.
    Loopback,
    /// A virtual cable between two hosts, with a token bucket at the sender.
    Shaped {
        /// Rate in Mbit/s, packet headers included.
        rate_mbit: u32,
    },
    /// Two hosts far apart, and a way that loses packets.
    Far(Far),
}

impl LinkKind {
    /// Its name in results.
    pub fn name(self) -> String {
        match self {
            LinkKind::Loopback => "loopback".to_owned(),
            LinkKind::Shaped { rate_mbit } => format!("{}-gbit", f64::from(rate_mbit) / 1e3),
            LinkKind::Far(far) => {
                format!("{}-mbit-{}-ms-{}-lost", far.rate_mbit, far.rtt_ms, far.lost_percent())
            }
        }
    }

    /// Its name for people.
    pub fn title(self) -> String {
        match self {
            LinkKind::Loopback => "loopback".to_owned(),
            LinkKind::Shaped { rate_mbit } => format!("{} Gbit/s", f64::from(rate_mbit) / 1e3),
            LinkKind::Far(far) => {
                format!("{} Mbit/s, {} ms, {} % lost", far.rate_mbit, far.rtt_ms, far.lost_percent())
            }
        }
    }

    /// Makes it. `dir` takes files of the processes that hold it.
    ///
    /// # Errors
    /// When a namespace, a device or a queue cannot be made (root is needed, and iproute2).
    pub fn open(self, dir: &Path) -> io::Result<Link> {
        match self {
            LinkKind::Loopback => loopback::open(dir),
            LinkKind::Shaped { rate_mbit } => netns::open(dir, rate_mbit),
            LinkKind::Far(far) => netem::open(dir, far),
        }
    }
}

/// A link that is there. It goes when the value does.
pub struct Link {
    source: Namespace,
    /// What lies between, where that is a host of its own.
    #[expect(dead_code, reason = "it is there as long as the link")]
    router: Option<Namespace>,
    destination: Option<Namespace>,
    /// Device at the source that everything goes through.
    device: &'static str,
    /// Address of the destination, as the source calls it.
    address: &'static str,
    rate_mbit: Option<u32>,
}

/// Addresses that a destination may have: certificates must name them all.
pub const ADDRESSES: [&str; 3] = [loopback::ADDRESS, netns::ADDRESS, netem::ADDRESS];

impl Link {
    /// A command that runs at the source.
    pub fn at_source(&self, program: &str) -> Command {
        self.source.command(program)
    }

    /// A command that runs at the destination.
    pub fn at_destination(&self, program: &str) -> Command {
        self.destination.as_ref().unwrap_or(&self.source).command(program)
    }

    /// Address of the destination.
    pub fn address(&self) -> &'static str {
        self.address
    }

    /// The rate it is shaped to, in bytes a second.
    pub fn rate_bytes(&self) -> Option<f64> {
        self.rate_mbit.map(|rate| f64::from(rate) * 1e6 / 8.0)
    }

    /// Bytes that went out at the source's device so far: cheap, for samples while a run is under way.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn sent_bytes(&self) -> io::Result<u64> {
        let table = fs::read_to_string(format!("/proc/{}/net/dev", self.source.pid()))?;
        let missing = || io::Error::other(format!("no device {} in /proc/net/dev", self.device));
        counters::parse_net_dev(&table, self.device).map(|counted| counted.sent_bytes).ok_or_else(missing)
    }

    /// All counters of the link.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn counters(&self) -> io::Result<Counters> {
        let table = fs::read_to_string(format!("/proc/{}/net/dev", self.source.pid()))?;
        let missing = || io::Error::other(format!("no device {} in /proc/net/dev", self.device));
        let mut counted = counters::parse_net_dev(&table, self.device).ok_or_else(missing)?;
        if self.rate_mbit.is_some() {
            let shown = self.source.output("tc", &["-s", "-j", "qdisc", "show", "dev", self.device])?;
            counted.qdisc_bytes = Some(counters::parse_qdisc_bytes(&shown)?);
        }
        Ok(counted)
    }

    /// Whether somebody listens for TCP connections on a port of the destination.
    pub fn listens(&self, port: u16) -> bool {
        let holder = self.destination.as_ref().unwrap_or(&self.source).pid();
        let table = fs::read_to_string(format!("/proc/{holder}/net/tcp")).unwrap_or_default();
        counters::parse_tcp_listens(&table, port)
    }
}
