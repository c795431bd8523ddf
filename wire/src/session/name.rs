//! Names that become paths at the server: only plain ones pass.

/// Longest name in bytes.
pub const NAME_LEN_MAX: usize = 128;

/// Why a name is not plain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} name {name:?} is not plain: 1 to 128 of the characters A-Z a-z 0-9 . _ -, the first no dot and no dash"
)]
pub struct BadName {
    what: &'static str,
    name: String,
}

/// Checks a session's name.
///
/// # Errors
/// [`BadName`] for anything but a plain name.
pub fn check_session(name: &str) -> Result<(), BadName> {
    check("session", name)
}

/// Checks the name of an image file that the client hands over (`core-17.img`, `stats-dump`): plain, and not one
/// of those that the server makes from the page lists and the manifest.
///
/// # Errors
/// [`BadName`] for anything else.
pub fn check_image(name: &str) -> Result<(), BadName> {
    check("image", name)?;
    let made_here =
        name.starts_with("pagemap-") || name.starts_with("pages-") || name == "godwit-manifest.img";
    if made_here {
        return Err(BadName { what: "image", name: name.to_owned() });
    }
    Ok(())
}

fn check(what: &'static str, name: &str) -> Result<(), BadName> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fits = (1..=NAME_LEN_MAX).contains(&name.len()) && !name.starts_with(['.', '-']);
    if fits && name.bytes().all(plain) {
        return Ok(());
    }
    Err(BadName { what, name: name.chars().take(NAME_LEN_MAX).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        for good in ["17-4711", "a", "web.1_x"] {
            assert_eq!(check_session(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-x", ".staging-1", "a\0", "ä", &"x".repeat(129)] {
            assert!(check_session(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn images_made_by_the_server_are_not_taken() {
        assert_eq!(check_image("core-17.img"), Ok(()));
        assert_eq!(check_image("stats-dump"), Ok(()));
        for bad in ["pagemap-17.img", "pages-1.img", "godwit-manifest.img", ".x", "../core.img"] {
            assert!(check_image(bad).is_err(), "{bad}");
        }
    }
}
