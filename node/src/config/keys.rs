//! The keys there are, read off the structs of `file.rs`: what the layers are checked against, and what the reference is
//! made of.

use std::fmt;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value as Json;

use super::file::File;

/// Below this likeness (of 1) a key is not offered for another.
const LIKENESS_MIN: f64 = 0.6;

/// Something that can be set, or a group of such things.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The last part of its path.
    pub name: String,
    /// Its comment; a blank line between paragraphs.
    pub docs: String,
    /// What it holds.
    pub kind: Kind,
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A table of further keys.
    Section(Vec<Key>),
    /// Any number of tables with these keys.
    List(Vec<Key>),
    /// A value.
    Value {
        /// Its form.
        form: Form,
        /// What it is when nobody sets it; `None` when that depends on the machine.
        default: Option<toml::Value>,
        /// What it may be, where there is no default.
        example: Option<toml::Value>,
    },
}

/// The form of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// Any text.
    Text,
    /// A whole number.
    Integer,
    /// true or false.
    Boolean,
    /// [`super::ByteSize`].
    Size,
    /// [`super::TimeSpan`].
    Duration,
    /// A time, always or never.
    SyncInterval,
    /// `HOST:PORT`.
    Address,
    /// A list of `HOST:PORT`.
    Addresses,
    /// An IP address without a port.
    IpAddress,
    /// A path.
    Path,
    /// One of these.
    Choice(Vec<Choice>),
    /// A list of these.
    Choices(Vec<Choice>),
}

/// One of several values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// As it is written.
    pub name: String,
    /// Its comment.
    pub docs: String,
}

/// The place of a value: `store.capacity`, `listener.0.address`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyPath(Vec<Segment>);

/// A part of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// The number of a table in a list, from 0.
    Index(usize),
    /// The name of a key.
    Name(String),
}

/// All keys, in the order of the structs.
pub fn root() -> &'static Key {
    static ROOT: LazyLock<Key> = LazyLock::new(|| {
        let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<File>();
        key("", schema.as_value())
    });
    &ROOT
}

// === impl Key ===

impl Key {
    /// The keys below it.
    #[must_use]
    pub fn children(&self) -> &[Key] {
        match &self.kind {
            Kind::Section(children) | Kind::List(children) => children,
            Kind::Value { .. } => &[],
        }
    }

    /// The key directly below it that has this name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Key> {
        self.children().iter().find(|key| key.name == name)
    }

    /// The key at this path below it, and whether the path ends on one table of a list.
    #[must_use]
    pub fn at(&self, path: &KeyPath) -> Option<(&Key, bool)> {
        let mut key = self;
        let mut in_element = false;
        for segment in path.segments() {
            let is_list = matches!(key.kind, Kind::List(_));
            match segment {
                Segment::Index(_) if is_list && !in_element => in_element = true,
                Segment::Name(name) if !is_list || in_element => {
                    key = key.child(name)?;
                    in_element = false;
                }
                _ => return None,
            }
        }
        Some((key, in_element))
    }
}

// === impl KeyPath ===

impl KeyPath {
    /// From `store.capacity`.
    #[must_use]
    pub fn from_dotted(text: &str) -> KeyPath {
        KeyPath(text.split('.').map(|part| segment(part.trim())).collect())
    }

    /// From the part after `CASBAH_` in `CASBAH_STORE__CAPACITY`.
    #[must_use]
    pub fn from_variable(text: &str) -> KeyPath {
        KeyPath(text.split("__").map(|part| segment(&part.to_ascii_lowercase())).collect())
    }

    /// One further down.
    #[must_use]
    pub fn join(&self, segment: Segment) -> KeyPath {
        let mut segments = self.0.clone();
        segments.push(segment);
        KeyPath(segments)
    }

    /// One further down.
    #[must_use]
    pub fn name(&self, name: &str) -> KeyPath {
        self.join(Segment::Name(name.to_owned()))
    }

    /// Its parts.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// Whether it is the other or below it.
    #[must_use]
    pub fn is_within(&self, other: &KeyPath) -> bool {
        self.0.starts_with(&other.0)
    }

    /// The paths above it, itself last.
    pub fn prefixes(&self) -> impl Iterator<Item = KeyPath> {
        (1..=self.0.len()).map(|length| KeyPath(self.0.iter().take(length).cloned().collect()))
    }

    /// The existing keys that are most like it: none, one, or several that are equally like it.
    #[must_use]
    pub fn nearest(&self) -> Vec<KeyPath> {
        let mut best = LIKENESS_MIN;
        let mut nearest = Vec::new();
        for candidate in self.candidates() {
            let likeness = self.likeness(&candidate);
            if likeness > best + f64::EPSILON {
                nearest.clear();
            }
            if likeness + f64::EPSILON >= best {
                best = best.max(likeness);
                nearest.push(candidate);
            }
        }
        nearest
    }

    /// All keys, with this path's own number in lists.
    fn candidates(&self) -> Vec<KeyPath> {
        let index = self.0.iter().find(|segment| matches!(segment, Segment::Index(_)));
        let mut candidates = Vec::new();
        let mut open = vec![(root(), KeyPath::default())];
        while let Some((key, path)) = open.pop() {
            let below = match (&key.kind, index) {
                (Kind::List(_), Some(index)) => path.join(index.clone()),
                _ => path,
            };
            for child in key.children().iter().rev() {
                open.push((child, below.name(&child.name)));
            }
            if !key.name.is_empty() {
                candidates.push(below);
            }
        }
        candidates
    }

    /// From 0 to 1. The last part counts most: a key is often right and in the wrong section, or in none.
    fn likeness(&self, other: &KeyPath) -> f64 {
        let (above, last) = self.split_last();
        let (other_above, other_last) = other.split_last();
        let abbreviated = last.len() >= 3 && other_last.starts_with(&last);
        let key = strsim::normalized_damerau_levenshtein(&last, &other_last).max(if abbreviated { 0.85 } else { 0.0 });
        let parts = key * (0.7 + 0.3 * strsim::normalized_damerau_levenshtein(&above, &other_above));
        // A wrong separator: `store_capacity`.
        let whole = strsim::normalized_damerau_levenshtein(&self.to_string(), &other.to_string());
        if self.0.len() == other.0.len() { parts } else { parts.max(whole) }
    }

    fn split_last(&self) -> (String, String) {
        match self.0.split_last() {
            Some((last, above)) => (KeyPath(above.to_vec()).to_string(), last.to_string()),
            None => (String::new(), String::new()),
        }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(Segment::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Segment::Index(index) => index.fmt(f),
            Segment::Name(name) => f.write_str(name),
        }
    }
}

fn segment(text: &str) -> Segment {
    match text.parse() {
        Ok(index) => Segment::Index(index),
        Err(_) => Segment::Name(text.to_owned()),
    }
}

// === impl Form ===

impl Form {
    /// As a reader is told: "a size".
    #[must_use]
    pub fn phrase(&self) -> String {
        let names =
            |choices: &[Choice]| choices.iter().map(|choice| choice.name.as_str()).collect::<Vec<_>>().join(", ");
        match self {
            Form::Text => "text".into(),
            Form::Integer => "a whole number".into(),
            Form::Boolean => "true or false".into(),
            Form::Size => "a size".into(),
            Form::Duration => "a length of time".into(),
            Form::SyncInterval => "a length of time, \"always\" or \"never\"".into(),
            Form::Address => "an address".into(),
            Form::Addresses => "a list of addresses".into(),
            Form::IpAddress => "an IP address".into(),
            Form::Path => "a path".into(),
            Form::Choice(choices) => format!("one of {}", names(choices)),
            Form::Choices(choices) => format!("a list of {}", names(choices)),
        }
    }
}

// === reading the schema ===

fn key(name: &str, schema: &Json) -> Key {
    let docs = schema.get("description").and_then(Json::as_str).unwrap_or_default().to_owned();
    let value = |json: &Json| serde_json::from_value::<toml::Value>(json.clone()).ok();
    let default = schema.get("default").and_then(value);
    let example = schema.get("examples").and_then(|examples| examples.get(0)).and_then(value);
    let inner = without_null(schema);
    let items = inner.get("items").map(without_null);
    let kind = match (children(inner), items.map(children)) {
        (Some(children), _) => Kind::Section(children),
        (None, Some(Some(children))) => Kind::List(children),
        (None, Some(None)) => Kind::Value { form: list_form(items.unwrap_or(inner)), default, example },
        (None, None) => Kind::Value { form: form(inner), default, example },
    };
    Key { name: name.to_owned(), docs, kind }
}

fn children(schema: &Json) -> Option<Vec<Key>> {
    let properties = schema.get("properties")?.as_object()?;
    Some(properties.iter().map(|(name, property)| key(name, property)).collect())
}

/// What an optional value is when it is there.
fn without_null(schema: &Json) -> &Json {
    let variants = schema.get("anyOf").and_then(Json::as_array);
    let is_null = |variant: &&Json| variant.get("type").and_then(Json::as_str) == Some("null");
    variants.and_then(|variants| variants.iter().find(|variant| !is_null(variant))).unwrap_or(schema)
}

fn form(schema: &Json) -> Form {
    let text = |name: &str| schema.get(name).and_then(Json::as_str);
    let has_type = |name: &str| match schema.get("type") {
        Some(Json::Array(types)) => types.iter().any(|one| one.as_str() == Some(name)),
        one => one.and_then(Json::as_str) == Some(name),
    };
    match text("format") {
        Some("size") => Form::Size,
        Some("duration") => Form::Duration,
        Some("duration, always or never") => Form::SyncInterval,
        Some("address") => Form::Address,
        Some("path") => Form::Path,
        Some("ip") => Form::IpAddress,
        _ if has_type("integer") => Form::Integer,
        _ if has_type("boolean") => Form::Boolean,
        _ => match choices(schema) {
            choices if choices.is_empty() => Form::Text,
            choices => Form::Choice(choices),
        },
    }
}

/// The form of a list of these.
fn list_form(items: &Json) -> Form {
    match form(items) {
        Form::Address => Form::Addresses,
        _ => Form::Choices(choices(items)),
    }
}

fn choices(schema: &Json) -> Vec<Choice> {
    let variants = schema.get("oneOf").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    let choice = |variant: &Json| {
        let text = |name: &str| variant.get(name).and_then(Json::as_str).map(str::to_owned);
        Some(Choice { name: text("const")?, docs: text("description").unwrap_or_default() })
    };
    variants.iter().filter_map(choice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest(text: &str) -> Vec<String> {
        KeyPath::from_dotted(text).nearest().iter().map(KeyPath::to_string).collect()
    }

    #[test]
    fn every_key_has_a_comment_and_a_form() {
        let mut open = vec![root()];
        while let Some(key) = open.pop() {
            assert!(!key.docs.is_empty(), "{}", key.name);
            if let Kind::Value { form: Form::Choice(choices) | Form::Choices(choices), .. } = &key.kind {
                assert!(!choices.is_empty(), "{}", key.name);
                assert!(choices.iter().all(|choice| !choice.docs.is_empty()), "{}", key.name);
            }
            open.extend(key.children());
        }
        let sections: Vec<&str> = root().children().iter().map(|key| key.name.as_str()).collect();
        assert_eq!(
            sections,
            [
                "node",
                "store",
                "index",
                "limits",
                "cluster",
                "repair",
                "peers",
                "kubernetes",
                "log",
                "admin",
                "listener",
                "instance"
            ]
        );
    }

    #[test]
    fn forms_are_read_off_the_structs() {
        let form = |path: &str| match &root().at(&KeyPath::from_dotted(path)).unwrap().0.kind {
            Kind::Value { form, .. } => form.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(form("node.name"), Form::Text);
        assert_eq!(form("node.dir"), Form::Path);
        assert_eq!(form("store.capacity"), Form::Size);
        assert_eq!(form("store.sync_interval"), Form::SyncInterval);
        assert_eq!(form("index.capacity"), Form::Integer);
        assert_eq!(form("listener.3.address"), Form::Address);
        assert_eq!(form("listener.0.tls.key"), Form::Path);
        assert_eq!(form("peers.advertise"), Form::Address);
        assert_eq!(form("cluster.join"), Form::Addresses);
        assert_eq!(form("listener.0.clients").phrase(), "one of anyone, certificate");
        assert_eq!(form("listener.0.allow").phrase(), "a list of read, write, admin");
    }

    #[test]
    fn paths_that_lead_nowhere_are_no_keys() {
        for path in ["", "capacity", "store.0", "store.capacity.x", "listener.address", "listener.0.1", "0", "store."] {
            assert!(root().at(&KeyPath::from_dotted(path)).is_none(), "{path}");
        }
        assert!(root().at(&KeyPath::from_dotted("listener")).is_some_and(|(_, element)| !element));
        assert!(root().at(&KeyPath::from_dotted("listener.1")).is_some_and(|(_, element)| element));
    }

    #[test]
    fn the_nearest_key_is_named() {
        assert_eq!(nearest("store.capcity"), ["store.capacity"]);
        assert_eq!(nearest("stor.capacity"), ["store.capacity"]);
        assert_eq!(nearest("capacity"), ["store.capacity", "index.capacity"]);
        assert_eq!(nearest("dir"), ["node.dir"]);
        assert_eq!(nearest("listener.2.adress"), ["listener.2.address"]);
        assert_eq!(nearest("listeners"), ["listener"]);
        assert_eq!(nearest("listener.0.tls.cert"), ["listener.0.tls.certificate"]);
        assert_eq!(nearest("zzz.qqq"), Vec::<String>::new());
    }

    #[test]
    fn variables_name_keys_in_capitals() {
        assert_eq!(KeyPath::from_variable("STORE__CAPACITY").to_string(), "store.capacity");
        assert_eq!(KeyPath::from_variable("LISTENER__0__TLS__KEY"), KeyPath::from_dotted("listener.0.tls.key"));
    }
}
