//! An image directory as JSON (by crit), and changes to it: the way to see a victim notice what is missing.

use super::child::run;
use super::lab;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Decodes one image file.
///
/// # Panics
/// With crit's words when it cannot.
#[track_caller]
pub fn decode(file: &Path) -> Value {
    let mut crit = Command::new(lab::crit().unwrap());
    crit.arg("decode").arg("-i").arg(file);
    let decoded = run(crit, Duration::from_secs(30)).expect_ok();
    serde_json::from_str(&decoded.stdout)
        .unwrap_or_else(|error| panic!("crit on {}: {error}", file.display()))
}

/// Encodes `image` as `file`, which is replaced and not written into: it may be a hard link.
#[track_caller]
pub fn encode(image: &Value, file: &Path) {
    let json = file.with_extension("json");
    let fresh = file.with_extension("fresh");
    std::fs::write(&json, serde_json::to_vec(image).unwrap()).unwrap();
    let mut crit = Command::new(lab::crit().unwrap());
    crit.arg("encode").arg("-i").arg(&json).arg("-o").arg(&fresh);
    run(crit, Duration::from_secs(30)).expect_ok();
    std::fs::remove_file(json).unwrap();
    std::fs::rename(fresh, file).unwrap();
}

/// A copy of an image directory: hard links, `parent` links kept.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else if entry.file_type().unwrap().is_file() {
            std::fs::hard_link(entry.path(), target).unwrap();
        }
    }
}

/// The one file in `dir` that `pattern` names: a plain name, or a name with `*` for the number that
/// is lowest (`core-*.img` is the leader's), or `name#2` for the second in order of numbers.
#[track_caller]
pub fn find(dir: &Path, pattern: &str) -> PathBuf {
    let (pattern, index) = match pattern.split_once('#') {
        Some((pattern, number)) => (pattern, number.parse::<usize>().unwrap() - 1),
        None => (pattern, 0),
    };
    let Some((head, tail)) = pattern.split_once('*') else { return dir.join(pattern) };
    let mut numbers: Vec<u64> = std::fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_prefix(head)?.strip_suffix(tail)?.parse().ok()
        })
        .collect();
    numbers.sort_unstable();
    let number =
        numbers.get(index).unwrap_or_else(|| panic!("{} has no {pattern} number {index}", dir.display()));
    dir.join(format!("{head}{number}{tail}"))
}

/// What is done to a field.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// The field is taken out; from a list, the element.
    Remove,
    /// The number becomes this one.
    Set(u64),
    /// Added to the number, without overflow.
    Add(i64),
    /// The number's lowest bits are flipped.
    Flip(u64),
    /// The text becomes this one.
    Text(&'static str),
    /// It becomes what another field of the image is.
    As(&'static str),
    /// A byte of the base64 text is changed.
    Byte(usize),
}

/// `path` with each `[field=number]` replaced by the index of the first element of that list with such a field: mappings
/// lie where the kernel puts them.
#[track_caller]
fn resolved(image: &Value, path: &str) -> String {
    let mut pointer = "/entries".to_owned();
    for part in path.split('/').skip(1) {
        let part = match part.strip_prefix('[').and_then(|part| part.strip_suffix(']')) {
            Some(wanted) => {
                let (field, number) = wanted.split_once('=').unwrap();
                let number: u64 = number.parse().unwrap();
                let list = image.pointer(&pointer).and_then(Value::as_array).unwrap();
                let found = list.iter().position(|element| element[field].as_u64() == Some(number));
                found.unwrap_or_else(|| panic!("{pointer} has none with {wanted}")).to_string()
            }
            None => part.to_owned(),
        };
        pointer = format!("{pointer}/{part}");
    }
    pointer.strip_prefix("/entries").unwrap().to_owned()
}

/// Changes the field of `image` at `path` (a JSON pointer below `/entries`, with `[field=number]` for an element).
///
/// # Panics
/// When there is no such field: a change that changes nothing proves nothing.
#[track_caller]
pub fn change(image: &mut Value, path: &str, change: Change) {
    let other = match change {
        Change::As(other) => {
            let pointer = format!("/entries{}", resolved(image, other));
            image.pointer(&pointer).unwrap_or_else(|| panic!("the image has no {pointer}")).clone()
        }
        _ => Value::Null,
    };
    let path = resolved(image, path);
    let (parent, last) = path.rsplit_once('/').unwrap();
    let pointer = format!("/entries{parent}");
    let parent = image.pointer_mut(&pointer).unwrap_or_else(|| panic!("the image has no {pointer}"));
    let target = match parent {
        Value::Object(map) if matches!(change, Change::Remove) => {
            map.remove(last).unwrap_or_else(|| panic!("{pointer} has no {last}"));
            return;
        }
        Value::Array(list) if matches!(change, Change::Remove) => {
            list.remove(last.parse().unwrap());
            return;
        }
        Value::Object(map) => map.get_mut(last),
        Value::Array(list) => list.get_mut(last.parse::<usize>().unwrap()),
        _ => None,
    }
    .unwrap_or_else(|| panic!("{pointer} has no {last}"));
    let before = target.clone();
    let number = target.as_u64();
    *target = match change {
        Change::Remove => unreachable!(),
        Change::Set(value) => value.into(),
        Change::Add(by) => number.unwrap().wrapping_add_signed(by).into(),
        Change::Flip(bits) => (number.unwrap() ^ bits).into(),
        Change::Text(text) => text.into(),
        Change::As(_) => other,
        Change::Byte(at) => {
            let mut text = target.as_str().unwrap().as_bytes().to_vec();
            // Both letters stand for different six bits.
            text[at] = if text[at] == b'A' { b'B' } else { b'A' };
            String::from_utf8(text).unwrap().into()
        }
    };
    assert_ne!(before, *target, "{path} already was so");
}
