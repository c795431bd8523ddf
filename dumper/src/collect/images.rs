//! The images of one round: each goes to the sink once, and the manifest remembers its hash.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use godwit_page_server::store::sink::{Sealed, Sink, SinkError};
use godwit_wire::fault;
use godwit_wire::image::manifest::{FileDigest, Manifest, PagesDigest};
use godwit_wire::image::pagemap;
use godwit_wire::plan::{EXTENT_SLOTS, RoundPlan};

use crate::error::DumpError;
use crate::parallel;
use crate::predump::pages::{PageSource, SentPages};

/// How often damaged extents are sent again before the round is given up.
const RESENDS_MAX: u32 = 3;

/// What a manifest says of where the images come from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Name of the session.
    pub session: String,
    /// Pid of the root in its own pid namespace.
    pub root_pid: u32,
}

/// Extents that were read and sent again.
#[derive(Debug)]
pub struct Resent {
    /// Of which pages file.
    pub pages_id: u32,
    /// Which.
    pub extents: Vec<u64>,
    /// What became of their pages, in the same order.
    pub sent: SentPages,
}

/// An announced round that is being filled.
pub struct ImageSet<'a> {
    sink: &'a dyn Sink,
    plan: RoundPlan,
    manifest: Manifest,
}

impl<'a> ImageSet<'a> {
    /// Announces the round to the sink.
    ///
    /// # Errors
    /// When the sink refuses the page list.
    pub fn begin(sink: &'a dyn Sink, plan: RoundPlan, origin: &Origin) -> Result<ImageSet<'a>, DumpError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut manifest = Manifest {
            session: origin.session.clone(),
            round: plan.round,
            base_round: plan.base_round,
            kind: plan.kind,
            restore_options: Vec::new(),
            root_pid: origin.root_pid,
            dumped_at_us: now.as_micros() as u64,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            files: Vec::new(),
            pages: Vec::new(),
        };
        for pages in &plan.pages {
            let bytes = pagemap::encode(pages)
                .map_err(|error| DumpError::sys(pages.owner.pagemap_name(), "encoding it", other(error)))?;
            manifest.files.push(FileDigest::of(&pages.owner.pagemap_name(), &bytes));
        }
        sink.begin(&plan)?;
        fault::point("mid.images.begun")?;
        Ok(ImageSet { sink, plan, manifest })
    }

    /// What was announced.
    pub fn plan(&self) -> &RoundPlan {
        &self.plan
    }

    /// Where the pages go.
    pub fn sink(&self) -> &'a dyn Sink {
        self.sink
    }

    /// Hands over one image.
    ///
    /// # Errors
    /// When the sink refuses it.
    pub fn put(&mut self, (name, bytes): (String, Bytes)) -> Result<(), DumpError> {
        self.manifest.files.push(FileDigest::of(&name, &bytes));
        self.sink.image(self.plan.round, &name, bytes)?;
        Ok(fault::point("mid.images.put")?)
    }

    /// Hands over many images, several at the same time.
    ///
    /// # Errors
    /// When the sink refuses one.
    pub fn put_all(&mut self, images: &[(String, Bytes)]) -> Result<(), DumpError> {
        let (sink, round) = (self.sink, self.plan.round);
        let digests = parallel::each(images, |(name, bytes)| {
            sink.image(round, name, bytes.clone())?;
            fault::point("mid.images.put")?;
            Ok::<_, DumpError>(FileDigest::of(name, bytes))
        })?;
        self.manifest.files.extend(digests);
        Ok(())
    }

    /// An option that `criu restore` needs for these images.
    pub fn need_option(&mut self, option: &str) {
        self.manifest.restore_options.push(option.to_owned());
    }

    /// Notes the hashes of a pages file whose pages were all handed over.
    pub fn pages_sent(&mut self, pages_id: u32, sent: &SentPages) {
        let plan = self.plan.pages.iter().find(|plan| plan.pages_id == pages_id);
        let nr_pages = plan.map_or(0, |plan| plan.slots());
        self.manifest.pages.push(PagesDigest { pages_id, nr_pages, extents: sent.extents.clone() });
    }

    /// Seals the round: when this returns it is durable. Extents that did not arrive as they were sent are read and
    /// sent again, a bounded number of times; what that brought comes back beside, in order.
    ///
    /// # Errors
    /// When the sink finds something missing or different, or cannot write.
    pub fn seal(mut self, source: &PageSource<'_>) -> Result<(Sealed, Vec<Resent>), DumpError> {
        let round = self.plan.round;
        let mut resent = Vec::new();
        for _ in 0..RESENDS_MAX {
            match self.sink.seal(round, &self.manifest) {
                Err(SinkError::WantData { pages_id, slots, .. }) => {
                    resent.push(self.resend(source, pages_id, &slots)?);
                }
                outcome => return Ok((outcome?, resent)),
            }
        }
        Ok((self.sink.seal(round, &self.manifest)?, resent))
    }

    fn resend(
        &mut self,
        source: &PageSource<'_>,
        pages_id: u32,
        slots: &[Range<u64>],
    ) -> Result<Resent, DumpError> {
        let round = self.plan.round;
        let plan = self.plan.pages.iter().find(|plan| plan.pages_id == pages_id);
        let digest = self.manifest.pages.iter_mut().find(|pages| pages.pages_id == pages_id);
        let (Some(plan), Some(digest)) = (plan, digest) else {
            let why = format!("pages-{pages_id}.img is asked for again, and is none of this round's");
            return Err(SinkError::Refused { round, why }.into());
        };
        let extents: BTreeSet<u64> = slots
            .iter()
            .flat_map(|slots| slots.start / EXTENT_SLOTS..slots.end.div_ceil(EXTENT_SLOTS))
            .collect();
        let extents: Vec<u64> = extents.into_iter().collect();
        tracing::warn!(round, pages_id, extents = extents.len(), "sending pages again that arrived damaged");
        let sent = source.send_extents(plan, round, self.sink, &extents)?;
        for (extent, hash) in extents.iter().zip(&sent.extents) {
            if let Some(known) = digest.extents.get_mut(*extent as usize) {
                *known = *hash;
            }
        }
        Ok(Resent { pages_id, extents, sent })
    }

    /// Options that a restore of these images needs.
    pub fn restore_options(&self) -> &[String] {
        &self.manifest.restore_options
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> std::io::Error {
    std::io::Error::other(error)
}
