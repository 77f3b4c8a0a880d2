//! `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`, extra arguments that a runtime passes through the environment.

/// The arguments, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CniArgs {
    pairs: Vec<(String, String)>,
}

/// A text that is not pairs, or a pair whose value cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid CNI_ARGS pair {pair:?}: expected {expected}")]
pub struct ArgsError {
    pub pair: String,
    pub expected: &'static str,
}

impl CniArgs {
    /// Reads the variable's value; an empty one has no pairs.
    ///
    /// # Errors
    /// When a pair is empty, or does not have exactly one `=`, or has no key.
    pub fn parse(text: &str) -> Result<Self, ArgsError> {
        let mut pairs = Vec::new();
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let split = pair.split_once('=').filter(|(key, value)| !key.is_empty() && !value.contains('='));
            let (key, value) =
                split.ok_or_else(|| ArgsError { pair: pair.to_owned(), expected: "KEY=VALUE" })?;
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self { pairs })
    }

    /// The last value given for the key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The keys, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_str())
    }

    /// True when `IgnoreUnknown` asks to take keys that the plugin does not know (Kubernetes runtimes set it).
    ///
    /// # Errors
    /// When its value is no boolean.
    pub fn ignores_unknown(&self) -> Result<bool, ArgsError> {
        match self.get("IgnoreUnknown") {
            None => Ok(false),
            Some(text) => match text.to_ascii_lowercase().as_str() {
                "1" | "true" => Ok(true),
                "0" | "false" => Ok(false),
                _ => {
                    Err(ArgsError { pair: format!("IgnoreUnknown={text}"), expected: "1, true, 0 or false" })
                }
            },
        }
    }
}

impl FromIterator<(String, String)> for CniArgs {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self { pairs: pairs.into_iter().collect() }
    }
}

impl std::fmt::Display for CniArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (key, value)) in self.pairs.iter().enumerate() {
            let divider = if index == 0 { "" } else { ";" };
            write!(f, "{divider}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
