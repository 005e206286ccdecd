//! Values of all sources laid over one another, key by key.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::error::{ConfigError, Origin, Problem};
use super::file::File;
use super::keys::{Form, Key, KeyPath, Kind, Segment, root};

/// What was set so far; later values replace earlier ones.
#[derive(Debug, Default)]
pub struct Layers {
    values: BTreeMap<KeyPath, (Value, Origin)>,
    /// The tables of lists, which may be there without holding a value.
    elements: BTreeMap<KeyPath, Origin>,
    /// Keys that were set to something that cannot be.
    failed: Vec<KeyPath>,
    pub(super) errors: Vec<ConfigError>,
}

// === impl Layers ===

impl Layers {
    /// Where a value, or the table of a list, was set.
    #[must_use]
    pub fn origin(&self, path: &KeyPath) -> Origin {
        let value = self.values.get(path).map(|(_, origin)| origin);
        value.or_else(|| self.elements.get(path)).cloned().unwrap_or(Origin::Default)
    }

    /// Where it was set, or where the nearest table around it is.
    pub(super) fn origin_around(&self, path: &KeyPath) -> Origin {
        let known: Vec<Origin> = path.prefixes().map(|p| self.origin(&p)).filter(|o| *o != Origin::Default).collect();
        known.last().cloned().unwrap_or(Origin::Default)
    }

    /// Whether something at this path or below was set to what cannot be, so that nothing more can be said about it.
    pub(super) fn is_broken(&self, path: &KeyPath) -> bool {
        self.failed.iter().any(|failed| failed.is_within(path))
    }

    /// Where the first listener was set.
    pub(super) fn first_element_origin(&self) -> Option<Origin> {
        let listeners = KeyPath::default().name("listener");
        self.elements.iter().find(|(path, _)| path.is_within(&listeners)).map(|(_, origin)| origin.clone())
    }

    /// Remembers that something is wrong.
    pub(super) fn fail(&mut self, key: Option<KeyPath>, origin: Origin, problem: Problem) {
        self.failed.extend(key.clone());
        self.errors.push(ConfigError { key, origin, problem });
    }

    /// Sets what is at `path` and below. Relative paths in it start from `folder`.
    pub(super) fn put(&mut self, path: &KeyPath, value: Value, origin: &dyn Fn(&KeyPath) -> Origin, folder: &Path) {
        match root().at(path) {
            Some((key, in_element)) => self.put_known(key, in_element, path, value, origin, folder),
            None => self.unknown(path, origin(path)),
        }
    }

    /// Sets what is at `path` from a text: as it is where the key takes text, and as TOML elsewhere.
    pub(super) fn put_text(&mut self, path: &KeyPath, text: &str, origin: &Origin, folder: &Path) {
        let Some((key, _)) = root().at(path) else { return self.unknown(path, origin.clone()) };
        let value = match &key.kind {
            // A list in brackets has quotes, which an address in brackets has not.
            Kind::Value { form: Form::Choices(_) | Form::Addresses, .. } if !is_array(text) => {
                let names = text.split(',').map(|name| Value::String(name.trim().to_owned()));
                Value::Array(names.collect())
            }
            Kind::Value { form: Form::Integer | Form::Boolean, .. } | Kind::Section(_) | Kind::List(_) => literal(text),
            Kind::Value { form: Form::Choices(_) | Form::Addresses, .. } => literal(text),
            Kind::Value { .. } => Value::String(text.to_owned()),
        };
        self.put(path, value, &|_| origin.clone(), folder);
    }

    /// The structs with everything that was set and can be.
    pub(super) fn file(&mut self) -> File {
        let mut table = Value::Table(Table::new());
        for (path, origin) in std::mem::take(&mut self.elements) {
            match insert(&mut table, path.segments(), Value::Table(Table::new())) {
                Some(()) => drop(self.elements.insert(path, origin)),
                None => {
                    let list = path.segments().first().map(Segment::to_string).unwrap_or_default();
                    self.fail(Some(path), origin, Problem::Gap { list });
                }
            }
        }
        for (path, (value, _)) in &self.values {
            // What stands in a table beyond a gap is told of already.
            let _beyond_a_gap = insert(&mut table, path.segments(), value.clone());
        }
        File::deserialize(table).expect("each value was tried alone")
    }

    fn put_known(
        &mut self,
        key: &Key,
        in_element: bool,
        path: &KeyPath,
        value: Value,
        origin: &dyn Fn(&KeyPath) -> Origin,
        folder: &Path,
    ) {
        for prefix in path.prefixes().filter(|prefix| matches!(prefix.segments().last(), Some(Segment::Index(_)))) {
            self.elements.entry(prefix.clone()).or_insert_with(|| origin(&prefix));
        }
        match (&key.kind, value) {
            (Kind::Section(_), Value::Table(table)) => self.put_table(path, table, origin, folder),
            (Kind::List(_), Value::Table(table)) if in_element => self.put_table(path, table, origin, folder),
            (Kind::List(_), Value::Array(tables)) if !in_element => {
                self.values.retain(|old, _| !old.is_within(path));
                self.elements.retain(|old, _| !old.is_within(path));
                for (index, table) in tables.into_iter().enumerate() {
                    self.put(&path.join(Segment::Index(index)), table, origin, folder);
                }
            }
            (Kind::Value { form, .. }, value) => {
                let value = if *form == Form::Path { absolute(value, folder) } else { value };
                match check(path, form, &value) {
                    Ok(()) => drop(self.values.insert(path.clone(), (value, origin(path)))),
                    Err(problem) => self.fail(Some(path.clone()), origin(path), problem),
                }
            }
            (kind, value) => {
                let is_list = matches!(kind, Kind::List(_)) && !in_element;
                let expected = match is_list {
                    true => format!("a list of tables, each under [[{path}]]"),
                    false => "a table".to_owned(),
                };
                let problem = Problem::Form { found: value.to_string(), expected };
                self.fail(Some(path.clone()), origin(path), problem);
            }
        }
    }

    fn put_table(&mut self, path: &KeyPath, table: Table, origin: &dyn Fn(&KeyPath) -> Origin, folder: &Path) {
        if matches!(path.segments().last(), Some(Segment::Name(_))) {
            // An empty table is something, too: `tls = {}`.
            self.values.insert(path.clone(), (Value::Table(Table::new()), origin(path)));
        }
        for (name, value) in table {
            self.put(&path.name(&name), value, origin, folder);
        }
    }

    fn unknown(&mut self, path: &KeyPath, origin: Origin) {
        let written = |path: KeyPath| match origin {
            Origin::Environment { .. } => {
                format!("CASBAH_{}", path.to_string().replace('.', "__").to_ascii_uppercase())
            }
            _ => path.to_string(),
        };
        let nearest = path.nearest().into_iter().map(written).collect();
        self.errors.push(ConfigError { key: Some(path.clone()), origin, problem: Problem::Unknown { nearest } });
    }
}

// === values ===

/// Whether the key takes this value: it is tried alone.
fn check(path: &KeyPath, form: &Form, value: &Value) -> Result<(), Problem> {
    let mut alone = Value::Table(Table::new());
    let first = |segment: &Segment| match segment {
        Segment::Index(_) => Segment::Index(0),
        name => name.clone(),
    };
    let segments: Vec<Segment> = path.segments().iter().map(first).collect();
    let inserted = insert(&mut alone, &segments, value.clone());
    match inserted.map(|()| File::deserialize(alone)) {
        Some(Ok(_)) => Ok(()),
        _ => Err(explain(form, value)),
    }
}

/// Why not.
fn explain(form: &Form, value: &Value) -> Problem {
    let names = |choices: &[super::keys::Choice]| choices.iter().map(|choice| choice.name.clone()).collect::<Vec<_>>();
    let other = || Problem::Form { found: value.to_string(), expected: form.phrase() };
    let problem = match (form, value) {
        (Form::Size, Value::String(text)) => text.parse::<super::ByteSize>().err().map(Problem::from),
        (Form::Duration | Form::SyncInterval, Value::String(text)) => {
            text.parse::<super::TimeSpan>().err().map(Problem::from)
        }
        (Form::Address, Value::String(text)) => text.parse::<super::ListenAddress>().err().map(Problem::from),
        (Form::Addresses, Value::Array(list)) => {
            let refused = |text: &str| text.parse::<super::ListenAddress>().err();
            list.iter().filter_map(Value::as_str).find_map(refused).map(Problem::from)
        }
        (Form::Path, Value::String(text)) if text.is_empty() => Some(Problem::PathEmpty),
        (Form::Path, Value::String(_)) => Some(Problem::PathTilde),
        (Form::Choice(choices), Value::String(text)) => {
            Some(Problem::Choice { found: text.clone(), choices: names(choices) })
        }
        (Form::Choices(choices), Value::Array(list)) => {
            let is_known = |text: &str| choices.iter().any(|choice| choice.name == text);
            let unknown = list.iter().filter_map(Value::as_str).find(|text| !is_known(text));
            unknown.map(|text| Problem::Choice { found: text.to_owned(), choices: names(choices) })
        }
        _ => None,
    };
    problem.unwrap_or_else(other)
}

fn is_array(text: &str) -> bool {
    matches!(literal(text), Value::Array(_))
}

/// A text as a value of TOML; what is none stays a text.
fn literal(text: &str) -> Value {
    let table = format!("value = {text}").parse::<Table>().ok().filter(|table| table.len() == 1);
    let value = table.and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn absolute(value: Value, folder: &Path) -> Value {
    match value {
        Value::String(path) if !path.is_empty() && !Path::new(&path).starts_with("~") => {
            // `folder` is text or it could not have been named; what is not stays as it was given.
            Value::String(folder.join(&path).to_str().map_or(path, str::to_owned))
        }
        other => other,
    }
}

/// Puts a value at a path, making the tables on the way. `None` when a list has no place of that number.
fn insert(at: &mut Value, path: &[Segment], value: Value) -> Option<()> {
    let Some((first, rest)) = path.split_first() else {
        *at = value;
        return Some(());
    };
    let below = match first {
        Segment::Name(name) => {
            let is_list = matches!(rest.first(), Some(Segment::Index(_)));
            let empty = if is_list { Value::Array(Vec::new()) } else { Value::Table(Table::new()) };
            at.as_table_mut()?.entry(name.clone()).or_insert(empty)
        }
        Segment::Index(index) => {
            let list = at.as_array_mut()?;
            if *index == list.len() {
                list.push(Value::Table(Table::new()));
            }
            list.get_mut(*index)?
        }
    };
    insert(below, rest, value)
}
