//! The settings as text: the reference page, the file to start from, and the configuration in effect.

use std::fmt::Write as _;

use toml::Value;

use super::error::Origin;
use super::keys::{Choice, Form, Key, KeyPath, Kind, Segment, root};
use super::sources::Loaded;

/// The width of comments.
const WIDTH: usize = 100;

/// The width of pages.
const PAGE_WIDTH: usize = 118;

/// The page `docs/reference/config.md`.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Generated from node/src/config/file.rs; CASBAH_BLESS=1 cargo test -p casbah --lib reference writes it anew. -->\n\n\
         A node needs no configuration. What is to be different is set in a TOML file (`casbah serve --config FILE`), in the\n\
         environment, or on the command line; each beats the one before it, key by key:\n\n\
         | where | how |\n|---|---|\n\
         | file | `capacity = \"500GiB\"` under `[store]` |\n\
         | environment | `CASBAH_STORE__CAPACITY=500GiB`, `CASBAH_LISTENER__0__ALLOW=read,write` |\n\
         | command line | `--set store.capacity=500GiB`, `--set listener.0.allow=read,write` |\n\n\
         `casbah config init` prints a file to start from, `casbah config check` tells everything that is wrong with one,\n\
         and `casbah config show --origin` prints what is in effect and where each value came from. Unknown keys are errors.\n\n\
         **Sizes** are numbers of bytes or have a unit: `500GiB`, `22MB`, `10e9`; a bare `K`, `M`, `G`, `T` counts in 1024s.\n\
         **Lengths of time** have units: `50ms`, `30s`, `1h30m`. **Paths** in a file start from the directory of that file,\n\
         others from the current directory.\n",
    );
    for section in root().children() {
        let heading = if matches!(section.kind, Kind::List(_)) {
            format!("[[{}]]", section.name)
        } else {
            format!("[{}]", section.name)
        };
        let _infallible = write!(page, "\n## `{heading}`\n\n{}\n", wrapped(&section.docs));
        for key in section.children() {
            describe(&mut page, &section.name, key);
        }
    }
    page
}

/// The file to start from: every key with its comment and its default, all commented out.
#[must_use]
pub fn init_file() -> String {
    let mut file = String::from(
        "# The settings of a casbah node. None is needed; each key is shown with its default, or with an\n\
         # example where the default depends on the machine. Remove the # before a key to set it.\n\
         # `casbah config check --config FILE` tells what is wrong.\n",
    );
    for section in root().children() {
        file.push('\n');
        comment(&mut file, &section.docs);
        let is_list = matches!(section.kind, Kind::List(_));
        let _infallible = match is_list {
            true => writeln!(file, "#[[{}]]", section.name),
            false => writeln!(file, "[{}]", section.name),
        };
        for key in section.children() {
            file.push('\n');
            comment(&mut file, &key.docs);
            if let Kind::Value { form: Form::Choice(choices) | Form::Choices(choices), .. } = &key.kind {
                for Choice { name, docs } in choices {
                    comment(&mut file, &format!("\"{name}\": {docs}"));
                }
            }
            let _infallible = writeln!(file, "#{} = {}", key.name, sample(key));
        }
    }
    file
}

/// The configuration in effect as a file; with the origin of each value beside it when asked for.
#[must_use]
pub fn show(loaded: &Loaded, with_origin: bool) -> String {
    let file = Value::try_from(&loaded.file).expect("the structs hold nothing that TOML has no form for");
    let mut text = String::new();
    for section in root().children() {
        let path = KeyPath::default().name(&section.name);
        match file.get(&section.name) {
            Some(Value::Array(tables)) => {
                for (index, table) in tables.iter().enumerate() {
                    let _infallible = writeln!(text, "[[{}]]", section.name);
                    show_keys(&mut text, section, table, &path.join(Segment::Index(index)), loaded, with_origin);
                }
            }
            Some(table) => {
                let _infallible = writeln!(text, "[{}]", section.name);
                show_keys(&mut text, section, table, &path, loaded, with_origin);
            }
            None => {}
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn show_keys(text: &mut String, section: &Key, table: &Value, at: &KeyPath, loaded: &Loaded, with_origin: bool) {
    for key in section.children() {
        let Some(value) = table.get(&key.name) else { continue };
        let _infallible = write!(text, "{} = {}", key.name, inline(value));
        if with_origin {
            let path = at.name(&key.name);
            // A table has the origins of what is in it.
            let parts = key.children().iter().map(|part| loaded.layers.origin(&path.name(&part.name)));
            let mut origins: Vec<Origin> = std::iter::once(loaded.layers.origin(&path)).chain(parts).collect();
            origins.retain(|origin| *origin != Origin::Default);
            origins.dedup();
            let origins: Vec<String> = origins.iter().map(Origin::to_string).collect();
            let origins = if origins.is_empty() { Origin::Default.to_string() } else { origins.join(", ") };
            let _infallible = write!(text, "  # {origins}");
        }
        text.push('\n');
    }
    text.push('\n');
}

/// A value on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Table(table) => {
            let parts: Vec<String> = table.iter().map(|(name, value)| format!("{name} = {}", inline(value))).collect();
            format!("{{ {} }}", parts.join(", "))
        }
        other => other.to_string(),
    }
}

/// A value to show where none is set.
fn sample(key: &Key) -> String {
    match &key.kind {
        Kind::Value { default, example, .. } => {
            default.as_ref().or(example.as_ref()).map_or_else(|| "\"\"".to_owned(), inline)
        }
        Kind::Section(_) | Kind::List(_) => {
            let parts: Vec<String> =
                key.children().iter().map(|part| format!("{} = {}", part.name, sample(part))).collect();
            format!("{{ {} }}", parts.join(", "))
        }
    }
}

fn describe(page: &mut String, section: &str, key: &Key) {
    let path = format!("{section}.{}", key.name);
    let _infallible = write!(page, "\n### `{path}`\n\n");
    if let Kind::Value { form, default, .. } = &key.kind {
        let form = match form {
            Form::Choice(_) => "one of the values below".to_owned(),
            Form::Choices(_) => "a list of the values below".to_owned(),
            other => other.phrase(),
        };
        let default = default.as_ref().map(|value| format!("; default `{}`", inline(value))).unwrap_or_default();
        let _infallible = write!(page, "*{form}{default}*\n\n");
    }
    let _infallible = writeln!(page, "{}", wrapped(&key.docs));
    if let Kind::Value { form: Form::Choice(choices) | Form::Choices(choices), .. } = &key.kind {
        page.push('\n');
        for Choice { name, docs } in choices {
            let _infallible = writeln!(page, "- `\"{name}\"`: {}", paragraphs(docs).join(" "));
        }
    }
    for part in key.children() {
        describe(page, &path, part);
    }
}

// === text ===

/// The paragraphs of a comment, each on one line.
fn paragraphs(docs: &str) -> Vec<String> {
    docs.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The same for a page.
fn wrapped(docs: &str) -> String {
    let wrap = |paragraph: &String| lines(paragraph, PAGE_WIDTH).join("\n");
    paragraphs(docs).iter().map(wrap).collect::<Vec<_>>().join("\n\n")
}

fn comment(file: &mut String, docs: &str) {
    for (index, paragraph) in paragraphs(docs).iter().enumerate() {
        if index > 0 {
            file.push_str("#\n");
        }
        for line in lines(paragraph, WIDTH - 2) {
            let _infallible = writeln!(file, "# {line}");
        }
    }
}

/// Lines of at most `width` characters, broken between words.
fn lines(paragraph: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in paragraph.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, Sources};

    fn load(set: &[&str]) -> Loaded {
        let machine = Machine {
            host_name: "h".into(),
            current_dir: "/here".into(),
            data_dir: "/data".into(),
            ..Machine::default()
        };
        let set = set.iter().map(|&text| text.to_owned()).collect();
        Sources { set, machine, ..Sources::default() }.load().unwrap()
    }

    #[test]
    fn the_file_to_start_from_sets_nothing() {
        let table: toml::Table = init_file().parse().unwrap();
        assert!(table.values().all(|section| section.as_table().is_some_and(toml::Table::is_empty)), "{table}");
        assert!(init_file().lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn the_file_to_start_from_names_every_key_in_its_form() {
        let is_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
        let keys = init_file()
            .lines()
            .filter(|line| is_key(line) || line.starts_with('['))
            .map(|line| line.trim_start_matches('#').to_owned())
            .collect::<Vec<_>>();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("casbah.toml");
        // Each alone is fine; together they contradict one another in one point.
        std::fs::write(&path, keys.join("\n").replace("\"anyone\"", "\"certificate\"")).unwrap();
        let machine = Machine {
            host_name: "h".into(),
            current_dir: "/here".into(),
            data_dir: "/data".into(),
            ..Machine::default()
        };
        Sources { file: Some(path), machine, ..Sources::default() }.load().unwrap();
    }

    #[test]
    fn what_is_shown_can_be_loaded_and_is_the_same() {
        let loaded = load(&["listener.1.address=localhost:5", "listener.0.tls={certificate=\"c\", key=\"k\"}"]);
        for with_origin in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("casbah.toml");
            std::fs::write(&path, show(&loaded, with_origin)).unwrap();
            let again = Sources { file: Some(path), machine: Machine::default(), ..Sources::default() }.load().unwrap();
            assert_eq!(again.config, loaded.config);
        }
    }

    #[test]
    fn origins_stand_beside_the_values() {
        let shown = show(&load(&["store.capacity=22MB", "listener.0.tls.key=k", "listener.0.tls.certificate=c"]), true);
        assert!(shown.contains("capacity = \"22MB\"  # --set\nretention_floor = \"3h\"  # default\n"), "{shown}");
        assert!(shown.contains("tls = { certificate = \"/here/c\", key = \"/here/k\" }  # --set\n"), "{shown}");
        assert!(shown.contains("name = \"h\"  # default\n"), "{shown}");
    }
}
