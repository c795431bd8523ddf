//! Nothing has been touched yet: options, kernel, processor, the process as it looks from outside, the link.
//!
//! In the order of the steps: `limits`, `root`, `rights` (may it be looked at), `leftovers`, `image_dir` (what scripts and
//! plugins take for the images), `scripts`, `plugins`, `kerndat`, `cpu`, `survey` (what could be refused),
//! `breakpoints` and `losses` (of its memory), `inventory`, `link`, `cpu_match` (does the destination's processor do),
//! `alarm`.

pub mod alarm;
pub mod breakpoints;
pub mod cpu;
pub mod cpu_match;
pub mod image_dir;
pub mod inventory;
pub mod kerndat;
pub mod leftovers;
pub mod limits;
pub mod link;
pub mod losses;
pub mod plugins;
pub mod rights;
pub mod root;
pub mod scripts;
pub mod survey;
