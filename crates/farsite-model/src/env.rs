//! `${env:NAME}` in paths and names of a policy or configuration: one file serves a demo, a test and a site.
//! Secrets do not come this way ([`crate::secret`]): what is expanded here may be printed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

type Lookup = Rc<dyn Fn(&str) -> Option<String>>;

thread_local! {
    /// serde hands no context to a value that is being read, and a process must not change its own environment
    /// while it has threads: so whoever reads a file says here what the environment is, for this thread and
    /// that one file.
    static ENVIRONMENT: RefCell<Option<Lookup>> = const { RefCell::new(None) };
}

/// Runs `read` with `lookup` in place of the process's environment.
pub fn with_environment<T>(lookup: impl Fn(&str) -> Option<String> + 'static, read: impl FnOnce() -> T) -> T {
    struct Restore(Option<Lookup>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let before = self.0.take();
            ENVIRONMENT.with(|environment| *environment.borrow_mut() = before);
        }
    }
    let before = ENVIRONMENT.with(|environment| environment.borrow_mut().replace(Rc::new(lookup)));
    let _restore = Restore(before);
    read()
}

fn variable(name: &str) -> Option<String> {
    let lookup = ENVIRONMENT.with(|environment| environment.borrow().clone());
    match lookup {
        Some(lookup) => lookup(name),
        None => std::env::var(name).ok(),
    }
}

/// Replaces every `${env:NAME}`. The error is a sentence about the variable.
pub fn expand(text: &str) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${env:") {
        let (before, reference) = rest.split_at(start);
        let end = reference.find('}').ok_or_else(|| format!("{reference:?} has no closing brace"))?;
        let name = &reference["${env:".len()..end];
        let value = variable(name).ok_or_else(|| {
            format!("the environment variable {name} is not set; set it, or write the value here")
        })?;
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = &reference[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// A string as it stands in a file, expanded while it is read so that an error has its very place.
#[derive(Debug)]
pub struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        expand(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// What can be made out of expanded strings; see [`deserialize`].
pub trait Expand: Sized {
    type Raw: DeserializeOwned;
    fn from_raw(raw: Self::Raw) -> Self;
}
impl Expand for String {
    type Raw = Text;
    fn from_raw(raw: Text) -> Self {
        raw.0
    }
}
impl Expand for PathBuf {
    type Raw = Text;
    fn from_raw(raw: Text) -> Self {
        raw.0.into()
    }
}
impl<T: Expand> Expand for Option<T> {
    type Raw = Option<T::Raw>;
    fn from_raw(raw: Self::Raw) -> Self {
        raw.map(T::from_raw)
    }
}
impl<T: Expand> Expand for Vec<T> {
    type Raw = Vec<T::Raw>;
    fn from_raw(raw: Self::Raw) -> Self {
        raw.into_iter().map(T::from_raw).collect()
    }
}
impl<T: Expand> Expand for BTreeMap<String, T> {
    type Raw = BTreeMap<String, T::Raw>;
    fn from_raw(raw: Self::Raw) -> Self {
        raw.into_iter().map(|(key, value)| (key, T::from_raw(value))).collect()
    }
}

/// For `#[serde(deserialize_with = "crate::env::deserialize")]`.
pub fn deserialize<'de, D: Deserializer<'de>, T: Expand>(deserializer: D) -> Result<T, D::Error> {
    T::Raw::deserialize(deserializer).map(T::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_and_an_unset_one_is_named() {
        let lookup = |name: &str| (name == "ROOT").then(|| "/srv".to_owned());
        with_environment(lookup, || {
            assert_eq!(expand("${env:ROOT}/a ${HOME} ${env:ROOT}").unwrap(), "/srv/a ${HOME} /srv");
            assert!(expand("${env:LEAF}").unwrap_err().contains("LEAF is not set"));
            assert!(expand("${env:ROOT").unwrap_err().contains("no closing brace"));
        });
    }

    #[test]
    fn the_process_environment_counts_again_afterwards() {
        with_environment(|_| None, || assert!(expand("${env:PATH}").is_err()));
        assert_eq!(expand("${env:PATH}").unwrap(), std::env::var("PATH").unwrap());
    }
}
