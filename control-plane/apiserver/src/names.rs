//! The name rules of Kubernetes: DNS labels and subdomains, qualified names, label values.
//!
//! Input: text. Output: upstream's sentences about what is wrong with it; none when it is good.

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
'[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn lower(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    let edges = bytes.first().is_some_and(|c| lower(*c)) && bytes.last().is_some_and(|c| lower(*c));
    edges && bytes.iter().all(|c| lower(*c) || *c == b'-')
}

fn collect(value: &str, limit: usize, good: bool, sentence: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > limit {
        problems.push(too_long(limit));
    }
    if !good {
        problems.push(sentence.to_owned());
    }
    problems
}

/// RFC 1123 label, as namespaces and container names are.
pub fn dns_label(value: &str) -> Vec<String> {
    collect(value, 63, is_label(value), LABEL)
}

/// RFC 1123 subdomain, as most names are.
pub fn dns_subdomain(value: &str) -> Vec<String> {
    collect(value, 253, value.split('.').all(is_label), SUBDOMAIN)
}

/// RFC 1035 label, as Service names are.
pub fn dns_1035_label(value: &str) -> Vec<String> {
    let letter = value.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    collect(value, 63, letter && is_label(value), LABEL_1035)
}

fn is_name_part(value: &str) -> bool {
    let bytes = value.as_bytes();
    let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// `[prefix/]name`, as label keys and annotation keys are.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let name = match value.split_once('/') {
        None => value,
        Some((prefix, name)) if !name.contains('/') => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else {
                problems.extend(
                    dns_subdomain(prefix).into_iter().map(|problem| format!("prefix part {problem}")),
                );
            }
            name
        }
        Some(_) => {
            return vec![
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                 with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                 validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and \
                 '/' (e.g. 'example.com/MyName')"
                    .to_owned(),
            ];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push(format!("name part {}", too_long(63)));
    }
    if !is_name_part(name) {
        problems.push(QUALIFIED.to_owned());
    }
    problems
}

pub fn label_value(value: &str) -> Vec<String> {
    collect(value, 63, value.is_empty() || is_name_part(value), LABEL_VALUE)
}

/// A key of a ConfigMap or Secret.
pub fn config_key(value: &str) -> Vec<String> {
    let good = !value.is_empty() && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
    let mut problems = collect(value, 253, good, CONFIG_KEY);
    if value == "." || value == ".." {
        problems.push(format!("must not be '{value}'"));
    } else if value.starts_with("..") {
        problems.push("must not start with '..'".to_owned());
    }
    problems
}

/// What can be one segment of a path, as names of roles and bindings are.
pub fn path_segment(value: &str) -> Vec<String> {
    if matches!(value, "." | "..") {
        return vec![format!("may not be '{value}'")];
    }
    let bad = ['/', '%'].into_iter().filter(|character| value.contains(*character));
    bad.map(|character| format!("may not contain '{character}'")).collect()
}

/// A name of a container port: IANA service name.
pub fn port_name(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > 15 {
        problems.push("must be no more than 15 characters".to_owned());
    }
    if value.is_empty() || !value.bytes().all(|c| lower(c) || c == b'-') {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|c| c.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        problems.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        problems.push("must not begin or end with a hyphen".to_owned());
    }
    problems
}

/// The suffix alphabet of generated names: no vowels, no look-alikes.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const MAX_GENERATED_PREFIX: usize = 63 - SUFFIX_LENGTH;

/// `prefix` with a random suffix, as `generateName` asks for.
pub fn generate(prefix: &str) -> String {
    let mut end = prefix.len().min(MAX_GENERATED_PREFIX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let random = uuid::Uuid::new_v4();
    // Bytes 6 and 8 of a version 4 UUID hold its version and variant; the last ones are random.
    let suffix = random.as_bytes()[9..].iter().take(SUFFIX_LENGTH);
    let suffix = suffix.map(|byte| SUFFIX_ALPHABET[usize::from(*byte) % SUFFIX_ALPHABET.len()] as char);
    prefix[..end].chars().chain(suffix).collect()
}

#[cfg(test)]
mod tests {
    //! Good and bad names of every rule.

    use super::*;

    #[test]
    fn rules() {
        assert!(
            dns_label("a-1").is_empty()
                && dns_subdomain("a.b-c").is_empty()
                && dns_1035_label("a1").is_empty()
        );
        assert!(qualified_name("example.com/My_Name.1").is_empty() && label_value("").is_empty());
        assert!(config_key("a_B.c").is_empty() && port_name("http-1").is_empty());
        for bad in ["", "-a", "a-", "A", "a_b", "ä"] {
            assert!(!dns_label(bad).is_empty() && !dns_subdomain(bad).is_empty(), "{bad}");
        }
        assert!(!dns_1035_label("1a").is_empty() && !qualified_name("a/b/c").is_empty());
        assert!(!config_key("..").is_empty() && !config_key("..a").is_empty() && !port_name("80").is_empty());
        assert!(path_segment("system:a B..").is_empty());
        assert_eq!(path_segment(".."), ["may not be '..'"]);
        assert_eq!(path_segment("a%/b"), ["may not contain '/'", "may not contain '%'"]);
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }

    #[test]
    fn generated_names_are_short_and_differ() {
        let long = "x".repeat(100);
        assert_eq!(generate(&long).len(), 63);
        assert_ne!(generate("web-"), generate("web-"));
    }
}
