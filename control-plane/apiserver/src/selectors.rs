//! Label and field selectors: parsing of the query parameters, and matching.
//!
//! Input: the text of `labelSelector` or `fieldSelector`. Output: requirements, or upstream's error sentence. Field
//! names are checked by the kind's own table, not here. The other way: a label selector object becomes its text.

use serde_json::Value;

use crate::object::{entries, items, text};

/// `key in (a,b)` and its relatives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelRequirement {
    In { key: String, values: Vec<String> },
    NotIn { key: String, values: Vec<String> },
    Exists { key: String },
    Missing { key: String },
    Greater { key: String, than: i64 },
    Less { key: String, than: i64 },
}

/// All requirements must hold; none at all matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(pub Vec<LabelRequirement>);

/// `field=value` or `field!=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: String,
    pub equal: bool,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<FieldRequirement>);

/// Requirements of one selector, at most.
const MAX_REQUIREMENTS: usize = 256;

impl LabelSelector {
    pub fn parse(input: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: input.trim() };
        let mut requirements = Vec::new();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            if requirements.len() > MAX_REQUIREMENTS {
                return Err(format!("selector has more than {MAX_REQUIREMENTS} requirements"));
            }
            parser.skip_space();
            if parser.rest.is_empty() {
                break;
            }
            if !parser.eat(",") {
                return Err(format!("found '{}', expected: ',' or 'end of string'", parser.word()));
            }
            parser.skip_space();
            if parser.rest.is_empty() {
                return Err("found '', expected: identifier after ','".into());
            }
        }
        Ok(LabelSelector(requirements))
    }

    /// `label` gives the value of a key.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| requirement.holds(&label))
    }
}

impl LabelRequirement {
    fn holds<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        let number = |key: &str| label(key).and_then(|value| value.parse::<i64>().ok());
        match self {
            LabelRequirement::In { key, values } => {
                label(key).is_some_and(|value| values.iter().any(|wanted| wanted == value))
            }
            LabelRequirement::NotIn { key, values } => {
                !label(key).is_some_and(|value| values.iter().any(|wanted| wanted == value))
            }
            LabelRequirement::Exists { key } => label(key).is_some(),
            LabelRequirement::Missing { key } => label(key).is_none(),
            LabelRequirement::Greater { key, than } => number(key).is_some_and(|value| value > *than),
            LabelRequirement::Less { key, than } => number(key).is_some_and(|value| value < *than),
        }
    }
}

/// A label selector object in its text form, as upstream writes it: requirements sorted by key, and their values too.
pub fn text_of(selector: &Value) -> String {
    let labels = entries(selector, "/matchLabels").map(|(key, value)| (key, format!("{key}={value}")));
    let mut terms: Vec<(&str, String)> = labels.collect();
    for requirement in items(selector, "/matchExpressions") {
        let key = text(requirement, "/key");
        let mut values: Vec<&str> = items(requirement, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let term = match text(requirement, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key, term));
    }
    terms.sort_by_key(|(key, _)| *key);
    terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",")
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &'a str {
        self.skip_space();
        let end =
            self.rest.find(|c: char| c.is_whitespace() || "=!,()<>".contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn key(&mut self) -> Result<String, String> {
        let key = self.word();
        if key.is_empty() {
            return Err(format!("found '{}', expected: !, identifier, or 'end of string'", self.rest));
        }
        let problems = crate::names::qualified_name(key);
        match problems.first() {
            Some(problem) => Err(format!("key: Invalid value: {key:?}: {problem}")),
            None => Ok(key.to_owned()),
        }
    }

    fn requirement(&mut self) -> Result<LabelRequirement, String> {
        if self.eat("!") {
            return Ok(LabelRequirement::Missing { key: self.key()? });
        }
        let key = self.key()?;
        self.skip_space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(LabelRequirement::Exists { key });
        }
        if self.eat("!=") {
            return Ok(LabelRequirement::NotIn { key, values: vec![self.value()?] });
        }
        if self.eat("==") || self.eat("=") {
            return Ok(LabelRequirement::In { key, values: vec![self.value()?] });
        }
        if self.eat(">") {
            return Ok(LabelRequirement::Greater { key, than: self.number()? });
        }
        if self.eat("<") {
            return Ok(LabelRequirement::Less { key, than: self.number()? });
        }
        match self.word() {
            "in" => Ok(LabelRequirement::In { key, values: self.set()? }),
            "notin" => Ok(LabelRequirement::NotIn { key, values: self.set()? }),
            found => Err(format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt")),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        let value = self.word();
        match crate::names::label_value(value).first() {
            Some(problem) => Err(format!("values[0]: Invalid value: {value:?}: {problem}")),
            None => Ok(value.to_owned()),
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        let word = self.word();
        word.parse().map_err(|_| {
            format!(
                "values[0]: Invalid value: {word:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            )
        })
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        if !self.eat("(") {
            return Err(format!("found '{}' expected: '('", self.word()));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(format!("found '{}', expected: ',' or ')'", self.word()));
            }
        }
    }
}

impl FieldSelector {
    pub fn parse(input: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for term in split_terms(input) {
            let (at, width, equal) = find_operator(&term)
                .ok_or_else(|| format!("invalid selector: '{input}'; can't understand '{term}'"))?;
            let value = unescape(&term[at + width..])
                .ok_or_else(|| format!("invalid field selector: invalid escape sequence in '{term}'"))?;
            requirements.push(FieldRequirement { field: term[..at].trim().to_owned(), equal, value });
        }
        if requirements.len() > MAX_REQUIREMENTS {
            return Err(format!("selector has more than {MAX_REQUIREMENTS} requirements"));
        }
        Ok(FieldSelector(requirements))
    }

    /// `field` gives the value of a field; a field without a value is the empty string.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|wanted| (field(&wanted.field).unwrap_or("") == wanted.value) == wanted.equal)
    }
}

/// Splits at commas that are not escaped.
fn split_terms(input: &str) -> Vec<String> {
    let mut terms = Vec::new();
    let mut term = String::new();
    let mut escaped = false;
    for c in input.chars() {
        if c == ',' && !escaped {
            terms.push(std::mem::take(&mut term));
            continue;
        }
        escaped = c == '\\' && !escaped;
        term.push(c);
    }
    terms.push(term);
    terms.retain(|term| !term.is_empty());
    terms
}

fn find_operator(term: &str) -> Option<(usize, usize, bool)> {
    for (at, _) in term.char_indices() {
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if term[at..].starts_with(operator) {
                return Some((at, operator.len(), equal));
            }
        }
    }
    None
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|next| matches!(next, '\\' | ',' | '='))?),
            ',' | '=' => return None,
            plain => out.push(plain),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests;
