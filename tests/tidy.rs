//! The project's own rules, where no lint knows them: layers, sizes, words, links.
//!
//! Each rule is a function from texts to findings. The tests above run it over this repository; those in `mod bad_input`
//! show that it finds what it is there to find. A finding is `path:line: what is wrong, and what to do instead`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the rules' inputs are. Not the whole directory: a build's output and a virtual environment lie about in it.
const FOLDERS: [&str; 7] = ["proto", "cluster", "node", "tests", "docs", "deploy", "scripts"];
/// Beyond this a file no longer fits in a head.
const MAX_FILE_LINES: usize = 700;

#[test]
fn imports_in_node_point_down_the_layering_line() {
    let layers = layering_line(&read("docs/architecture.md")).expect("docs/architecture.md has the layering line");
    assert_none(all_of(&rust_under("node/src"), |file| upward_imports(file, &layers)));
}

#[test]
fn the_layering_line_names_the_folders_of_node() {
    let layers = layering_line(&read("docs/architecture.md")).expect("docs/architecture.md has the layering line");
    let folders = fs::read_dir(root().join("node/src")).expect("node/src is there");
    let folders = folders.map(|entry| entry.expect("it can be read").path()).filter(|path| path.is_dir());
    let folders: BTreeSet<String> = folders.map(|path| path.file_name().unwrap().to_string_lossy().into()).collect();
    let named: BTreeSet<String> = layers.iter().filter(|layer| *layer != "main").cloned().collect();
    assert_eq!(folders, named, "left: folders of node/src, right: docs/architecture.md");

    let code_says = layering_line(&read("node/src/lib.rs").replace("//! ", "")).expect("node/src/lib.rs has the line");
    assert!(layers.ends_with(&code_says), "node/src/lib.rs says {code_says:?}, docs/architecture.md {layers:?}");
}

#[test]
fn the_crates_point_one_way() {
    assert_none(forbidden_dependencies("proto/Cargo.toml", &read("proto/Cargo.toml"), &["casbah", "casbah-cluster"]));
    assert_none(forbidden_dependencies(
        "cluster/Cargo.toml",
        &read("cluster/Cargo.toml"),
        &["casbah", "tokio", "tonic"],
    ));
    assert_none(all_of(&rust_under("cluster/src"), inputs_and_outputs));
}

#[test]
fn nothing_is_imported_by_the_handful() {
    assert_none(all_of(&rust(), glob_imports));
}

#[test]
fn no_test_is_ignored() {
    assert_none(all_of(&rust(), ignored_tests));
}

#[test]
fn what_is_left_to_do_says_why() {
    assert_none(all_of(&rust(), bare_reminders));
}

#[test]
fn a_mod_file_is_a_table_of_contents() {
    let files: Vec<Text> = rust().into_iter().filter(|file| file.path.ends_with("/mod.rs")).collect();
    assert_none(all_of(&files, logic_in_mod_file));
}

#[test]
fn a_file_fits_in_a_head() {
    assert_none(all_of(&rust(), too_long));
}

#[test]
fn no_test_sleeps_without_a_reason() {
    assert_none(all_of(&rust_under("tests"), bare_sleeps));
}

#[test]
fn every_link_in_the_docs_leads_somewhere() {
    let pages = markdown();
    assert_none(all_of(&pages, |page| dead_links(page, &pages, &|path| root().join(path).exists())));
}

#[test]
fn every_path_in_the_docs_exists() {
    assert_none(all_of(&markdown(), |page| dead_paths(page, &|path| root().join(path).exists())));
}

#[test]
fn every_make_target_in_the_docs_exists() {
    let targets = make_targets(&read("Makefile"));
    assert_none(all_of(&markdown(), |page| dead_make_targets(page, &targets)));
}

// === rules ===

/// `a > b > c`, the first line of a text that has that form with at least three names.
fn layering_line(text: &str) -> Option<Vec<String>> {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    text.lines().find_map(|line| {
        let names: Vec<String> = line.trim().split(" > ").map(str::to_owned).collect();
        (names.len() >= 3 && names.iter().all(|name| is_name(name))).then_some(names)
    })
}

/// Imports, and paths in full, of a module that stands above the file's own.
fn upward_imports(file: &Text, layers: &[String]) -> Vec<String> {
    let rank = |module: &str| layers.iter().position(|layer| layer == module);
    let inside = file.path.trim_start_matches("node/src/");
    let from = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
    if from == "lib" {
        return Vec::new();
    }
    let Some(from_rank) = rank(from) else {
        return vec![format!("{}: `{from}` is not in the layering line", file.path)];
    };

    let mut findings = Vec::new();
    for (line, to) in crate_paths(&file.code) {
        match rank(&to) {
            Some(to_rank) if to_rank >= from_rank => {}
            Some(_) => findings.push(file.finding(line, format_args!("{from} imports {to}, which is above it"))),
            None => findings.push(file.finding(line, format_args!("`crate::{to}` is not in the layering line"))),
        }
    }
    for (line, _) in file.lines_with("super::super") {
        findings.push(file.finding(line, "a path through `super::super` hides its layer: begin it with `crate::`"));
    }
    findings
}

/// The first name after each `crate::`, those of a group (`crate::{a::B, c}`) one by one, with its line.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push((line, identifier(rest)));
            continue;
        };
        let mut depth = 0usize;
        let mut item_start = true;
        for (offset, c) in group.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => item_start = true,
                _ if item_start && !c.is_whitespace() => {
                    let line = line + group[..offset].matches('\n').count();
                    found.push((line, identifier(&group[offset..])));
                    item_start = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// A manifest's dependencies that point the wrong way.
fn forbidden_dependencies(path: &str, manifest: &str, forbidden: &[&str]) -> Vec<String> {
    let name_of = |line: &str| line.split(['.', '=', ' ']).next().unwrap_or_default().to_owned();
    let named = manifest.lines().enumerate().map(|(index, line)| (index + 1, name_of(line)));
    let wrong = named.filter(|(_, name)| forbidden.contains(&name.as_str()));
    wrong.map(|(line, name)| format!("{path}:{line}: must not depend on {name}")).collect()
}

/// `cluster` decides and does nothing: no files, no sockets, no clock, no tasks.
fn inputs_and_outputs(file: &Text) -> Vec<String> {
    let words = ["std::fs", "std::net", "std::process", "std::thread", "Instant::now", "SystemTime::now", "tokio::"];
    let lines = words.iter().flat_map(|word| file.lines_with(word).map(move |(line, _)| (line, word)));
    lines
        .map(|(line, word)| file.finding(line, format_args!("`{word}`: cluster has no IO and is told the time")))
        .collect()
}

/// `use super::*;` is let pass: it is how tests beside the code see what they test.
fn glob_imports(file: &Text) -> Vec<String> {
    let starts_use = |text: &str| text.starts_with("use ") || (text.starts_with("pub") && text.contains(" use "));
    let mut inside = false;
    let mut findings = Vec::new();
    for (index, text) in file.code.lines().enumerate() {
        inside = inside || starts_use(text.trim_start());
        if inside && text.contains('*') && text.trim() != "use super::*;" {
            findings.push(file.finding(index + 1, "a glob import: name what is used"));
        }
        inside = inside && !text.contains(';');
    }
    findings
}

fn ignored_tests(file: &Text) -> Vec<String> {
    let lines = file.lines_with("ignore").filter(|(_, text)| text.contains("#[ignore") || text.contains("cfg_attr("));
    lines.map(|(line, _)| file.finding(line, "an ignored test: fix it or remove it")).collect()
}

/// A marker, a colon and a sentence, or no marker.
fn bare_reminders(file: &Text) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, text) in file.comments.lines().enumerate() {
        for marker in ["TODO", "FIXME", "XXX"] {
            let Some(at) = text.find(marker) else { continue };
            let reason = text[at + marker.len()..].strip_prefix(':').unwrap_or_default();
            if reason.split_whitespace().count() < 4 {
                findings
                    .push(file.finding(index + 1, format_args!("{marker} without a reason (`{marker}: a sentence`)")));
            }
        }
    }
    findings
}

/// Whatever is not `mod`, `pub use` or an attribute.
fn logic_in_mod_file(file: &Text) -> Vec<String> {
    let mut findings = Vec::new();
    let mut line = 1;
    for statement in file.code.split(';') {
        let mut text = statement.trim_start();
        line += statement.len().checked_sub(text.len()).map_or(0, |cut| statement[..cut].matches('\n').count());
        let statement_line = line;
        line += text.matches('\n').count();
        while text.starts_with('#') {
            text = text.find(']').map_or("", |end| text[end + 1..].trim_start());
        }
        let face = text.strip_prefix("pub").map_or(text, |rest| match rest.split_once(')') {
            Some((_, after)) if rest.starts_with('(') => after,
            _ => rest,
        });
        let is_contents = match face.split_whitespace().next() {
            None => true,
            Some("mod") => !face.contains('{'),
            Some("use") => face.len() < text.len(),
            Some(_) => false,
        };
        if !is_contents {
            findings.push(file.finding(statement_line, "mod.rs holds `mod` and `pub use` only: move this into a file"));
        }
    }
    findings
}

fn too_long(file: &Text) -> Vec<String> {
    let count = file.whole.lines().count();
    let long =
        (count > MAX_FILE_LINES).then(|| format!("{}: {count} lines, of {MAX_FILE_LINES} at the most", file.path));
    long.into_iter().collect()
}

/// A sleep in a test is a guess at how long something takes. A reason is `// why:` on its line or on the one above.
fn bare_sleeps(file: &Text) -> Vec<String> {
    let comments: Vec<&str> = file.comments.lines().collect();
    let has_reason = |line: usize| {
        let candidates = [line.checked_sub(1), line.checked_sub(2)];
        candidates.iter().flatten().any(|index| comments.get(*index).is_some_and(|text| text.contains("// why:")))
    };
    let is_call = |text: &str, word: &str| {
        let before = |at| text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        text.match_indices(word).any(|(at, _)| !before(at) && !text[..at].trim_end().ends_with("fn"))
    };
    let words = ["sleep(", "sleep_until("];
    let lines = file.code.lines().enumerate().map(|(index, text)| (index + 1, text));
    let sleeps = lines.filter(|(line, text)| words.iter().any(|word| is_call(text, word)) && !has_reason(*line));
    sleeps.map(|(line, _)| file.finding(line, "a sleep without `// why:`: wait for what is meant instead")).collect()
}

/// Relative links whose file, or whose heading, is not there.
fn dead_links(page: &Text, pages: &[Text], exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, text) in page.code.lines().enumerate() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { page.path.clone() } else { resolve(&page.path, path) };
            if !exists(&path) {
                findings.push(page.finding(index + 1, format_args!("the link to {target} leads nowhere")));
            } else if let Some(aim) = pages.iter().find(|other| other.path == path)
                && !anchor.is_empty()
                && !headings(aim).contains(anchor)
            {
                findings.push(page.finding(index + 1, format_args!("{path} has no heading #{anchor}")));
            }
        }
    }
    findings
}

/// The anchors of a page's headings.
fn headings(page: &Text) -> BTreeSet<String> {
    let titles =
        page.whole.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |title: &str| {
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    };
    titles.map(anchor).collect()
}

/// Paths of this repository, in backticks, that are not there.
fn dead_paths(page: &Text, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, text) in page.whole.lines().enumerate() {
        for span in text.split('`').skip(1).step_by(2) {
            let ours = span.split_once('/').is_some_and(|(folder, _)| FOLDERS.contains(&folder));
            let plain = span.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
            if ours && plain && !exists(span) {
                findings.push(page.finding(index + 1, format_args!("there is no {span}")));
            }
        }
    }
    findings
}

/// `name:` at the beginning of a line.
fn make_targets(makefile: &str) -> BTreeSet<String> {
    let names = makefile.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name);
    names.filter(|name| !name.is_empty() && name.chars().all(is_target_char)).map(str::to_owned).collect()
}

/// `make x` as a command (in backticks, or a line of a code block) where the Makefile knows no x.
fn dead_make_targets(page: &Text, targets: &BTreeSet<String>) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, text) in page.whole.lines().enumerate() {
        let spans = text.split('`').skip(1).step_by(2);
        for command in spans.chain([text.trim_start().trim_start_matches("$ ")]) {
            let Some(words) = command.strip_prefix("make ") else { continue };
            let name: String = words.chars().take_while(|c| is_target_char(*c)).collect();
            let is_command = command != text.trim_start() || words.trim_end() == name || words.contains(" #");
            if is_command && !targets.contains(&name) {
                findings.push(page.finding(index + 1, format_args!("the Makefile has no target {name}")));
            }
        }
    }
    findings
}

// === texts ===

/// A file, and what of it is code and what is not; lines stay where they are.
struct Text {
    path: String,
    whole: String,
    /// Rust: without comments and without what is in quotes. Markdown: without code.
    code: String,
    /// Rust: comments alone.
    comments: String,
}

impl Text {
    fn rust(path: &str, whole: &str) -> Text {
        let (code, comments) = split_rust(whole);
        Text { path: path.to_owned(), whole: whole.to_owned(), code, comments }
    }

    fn markdown(path: &str, whole: &str) -> Text {
        let mut fenced = false;
        let mut code = String::new();
        for line in whole.lines() {
            let is_fence = line.trim_start().starts_with("```");
            fenced ^= is_fence;
            if !fenced && !is_fence {
                code.extend(line.split('`').step_by(2));
            }
            code.push('\n');
        }
        Text { path: path.to_owned(), whole: whole.to_owned(), code, comments: String::new() }
    }

    fn lines_with<'a>(&'a self, word: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        self.code
            .lines()
            .enumerate()
            .filter(move |(_, text)| text.contains(word))
            .map(|(index, text)| (index + 1, text))
    }

    fn finding(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// Code and comments of a Rust file, each with blanks in the other's place. Strings belong to neither.
fn split_rust(whole: &str) -> (String, String) {
    let (mut code, mut comments) = (String::new(), String::new());
    let mut rest = whole;
    let mut previous = ' ';
    while let Some(c) = rest.chars().next() {
        let (len, is_comment, is_code) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), true, false)
        } else if rest.starts_with("/*") {
            (block_comment_len(rest), true, false)
        } else if let Some(len) = raw_string_len(rest).filter(|_| !(previous.is_alphanumeric() || previous == '_')) {
            (len, false, false)
        } else if c == '"' {
            (quoted_len(rest, '"'), false, false)
        } else if c == '\'' && (rest.starts_with("'\\") || rest.chars().nth(2) == Some('\'')) {
            (quoted_len(rest, '\''), false, false)
        } else {
            (c.len_utf8(), false, true)
        };
        for c in rest[..len].chars() {
            let blank = if c == '\n' { '\n' } else { ' ' };
            code.push(if is_code { c } else { blank });
            comments.push(if is_comment { c } else { blank });
            previous = c;
        }
        rest = &rest[len..];
    }
    (code, comments)
}

fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        let (step, change) = match rest.get(at..at + 2) {
            Some("/*") => (2, 1),
            Some("*/") => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth = depth.saturating_add_signed(change);
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of `r"..."`, `r#"..."#` and their `b` and `c` forms.
fn raw_string_len(rest: &str) -> Option<usize> {
    let after_prefix = rest.trim_start_matches(['b', 'c']).strip_prefix('r')?;
    let body = after_prefix.trim_start_matches('#');
    let end = format!("\"{}", "#".repeat(after_prefix.len() - body.len()));
    let content = body.strip_prefix('"')?;
    let start = rest.len() - content.len();
    Some(content.find(&end).map_or(rest.len(), |at| start + at + end.len()))
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn identifier(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn is_target_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// A link's target as a path from the root.
fn resolve(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

// === the repository ===

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

/// Paths from the root, sorted, of the files below `folder` whose names end in `ending`.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return found };
    for entry in entries.flatten() {
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.extend(files(&path, ending));
        } else if path.ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn rust_under(folder: &str) -> Vec<Text> {
    files(folder, ".rs").iter().map(|path| Text::rust(path, &read(path))).collect()
}

fn rust() -> Vec<Text> {
    ["proto", "cluster", "node", "tests"].iter().flat_map(|folder| rust_under(folder)).collect()
}

fn markdown() -> Vec<Text> {
    let mut paths: Vec<String> = FOLDERS.iter().flat_map(|folder| files(folder, ".md")).collect();
    paths.extend(["README.md", "CHANGELOG.md"].map(str::to_owned));
    paths.iter().map(|path| Text::markdown(path, &read(path))).collect()
}

fn all_of(texts: &[Text], rule: impl Fn(&Text) -> Vec<String>) -> Vec<String> {
    texts.iter().flat_map(rule).collect()
}

fn assert_none(findings: Vec<String>) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// Each rule finds what it is there to find, and lets pass what it should.
#[cfg(test)]
mod bad_input {
    use super::{
        Text, bare_reminders, bare_sleeps, dead_links, dead_make_targets, dead_paths, forbidden_dependencies,
        glob_imports, ignored_tests, inputs_and_outputs, layering_line, logic_in_mod_file, make_targets, split_rust,
        too_long, upward_imports,
    };

    fn rust(whole: &str) -> Text {
        Text::rust("node/src/store/read.rs", whole)
    }

    /// The lines of the findings.
    fn lines(findings: Vec<String>) -> Vec<usize> {
        findings.iter().map(|finding| finding.split(':').nth(1).unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn an_upward_import_in_every_form() {
        let layers = layering_line("words\n    serve > store > config\nmore").unwrap();
        let found = |whole| lines(upward_imports(&rust(whole), &layers));
        assert_eq!(found("use crate::config::Config;\nuse crate::store::Blob;\n"), []);
        assert_eq!(found("use crate::serve::Cas;\n"), [1]);
        assert_eq!(found("fn f() {\n    crate::serve::answer()\n}\n"), [2]);
        assert_eq!(found("use crate::{\n    config::{A, B},\n    serve::C,\n};\n"), [3]);
        assert_eq!(found("use crate::{config, serve};\n"), [1]);
        assert_eq!(found("use super::super::serve::C;\n"), [1]);
        assert_eq!(found("use crate::elsewhere::C;\n"), [1]);
        assert_eq!(found("// crate::serve\nlet s = \"crate::serve\";\n"), []);
    }

    #[test]
    fn a_folder_that_the_line_does_not_name() {
        let layers = layering_line("serve > store > config").unwrap();
        let file = Text::rust("node/src/helpers/x.rs", "");
        assert_eq!(upward_imports(&file, &layers).len(), 1);
        assert_eq!(layering_line("a sentence with a > in it\nx > y"), None);
    }

    #[test]
    fn a_dependency_that_points_up() {
        let manifest = "[dependencies]\ncasbah.workspace = true\ncasbah-cluster = { path = \"x\" }\ntokio = \"1\"\n";
        assert_eq!(lines(forbidden_dependencies("m", manifest, &["casbah", "tokio"])), [2, 4]);
    }

    #[test]
    fn io_where_decisions_are_made() {
        assert_eq!(lines(inputs_and_outputs(&rust("let now = Instant::now();\n// std::fs\nuse std::fs;\n"))), [3, 1]);
    }

    #[test]
    fn a_glob_import() {
        assert_eq!(
            lines(glob_imports(&rust("use a::*;\nuse super::*;\npub use b::{\n    c::*,\n};\nlet x = 2 * 3;\n"))),
            [1, 4]
        );
    }

    #[test]
    fn an_ignored_test() {
        assert_eq!(lines(ignored_tests(&rust("#[ignore]\nfn a() {}\n#[ignore = \"slow\"]\nfn b() {}\n"))), [1, 3]);
    }

    #[test]
    fn a_reminder_without_a_reason() {
        let text =
            "// TODO\n// TODO: later\n// TODO: wait until the library has it\nlet todo = \"FIXME\";\n/* FIXME */\n";
        assert_eq!(lines(bare_reminders(&rust(text))), [1, 2, 5]);
    }

    #[test]
    fn logic_in_a_mod_file() {
        let good =
            "//! What.\n\n#[cfg(test)]\nmod a;\npub mod b;\npub(crate) use a::{\n    B,\n    C,\n};\npub use d::E;\n";
        assert_eq!(lines(logic_in_mod_file(&rust(good))), []);
        assert_eq!(lines(logic_in_mod_file(&rust("mod a;\n\nfn f() {}\n"))), [3]);
        assert_eq!(lines(logic_in_mod_file(&rust("use a::b;\nmod c {}\n"))), [1, 2]);
        assert_eq!(lines(logic_in_mod_file(&rust("pub use a::b;\npub(crate) struct S;\n"))), [2]);
    }

    #[test]
    fn a_file_that_is_too_long() {
        assert_eq!(too_long(&rust(&"\n".repeat(700))).len(), 0);
        assert_eq!(too_long(&rust(&"\n".repeat(701))).len(), 1);
    }

    #[test]
    fn a_sleep_without_a_reason() {
        let bad = "thread::sleep(x);\n\ntokio::time::sleep(x).await;\n\nsleep(x);\n\nsleep_until(x).await;\n";
        assert_eq!(lines(bare_sleeps(&rust(bad))), [1, 3, 5, 7]);
        let good = "thread::sleep(x); // why: it is the clock that is tested\n// why: so\nsleep(x);\n// sleep(x)\nno_sleep(x)\n";
        assert_eq!(lines(bare_sleeps(&rust(good))), []);
    }

    #[test]
    fn a_link_that_leads_nowhere() {
        let text = "[a](b.md) [a](../README.md#two-words) [a](b.md#none)\n[c](c.md)\n`[d](d.md)`\n[e](https://e.e/)\n";
        let pages = [
            Text::markdown("docs/a.md", text),
            Text::markdown("docs/b.md", "# B"),
            Text::markdown("README.md", "## Two words\n"),
        ];
        let exists = |path: &str| pages.iter().any(|page| page.path == path);
        assert_eq!(lines(dead_links(&pages[0], &pages, &exists)), [1, 2]);
    }

    #[test]
    fn a_path_that_is_not_there() {
        let page = Text::markdown("README.md", "`node/src/gone.rs` and `node/src/main.rs`\n`node/src/*.rs` `a/b`\n");
        assert_eq!(lines(dead_paths(&page, &|path| path == "node/src/main.rs")), [1]);
    }

    #[test]
    fn a_make_target_that_is_not_there() {
        let targets = make_targets(".PHONY: x\ntest: build ## Run\n\techo a: b\nVAR := 1\n");
        let page =
            Text::markdown("README.md", "`make test`, `make gone`\nmake test\n    make lost # why\nmake sure of it\n");
        assert_eq!(lines(dead_make_targets(&page, &targets)), [1, 3]);
    }

    #[test]
    fn code_and_comments_are_told_apart() {
        let whole = "a /* b /* c */ d */ e 'f' '\\'' <'g> \"h\\\" // i\" r#\"j\"k\"# b\"l\" // m\nn";
        let (code, comments) = split_rust(whole);
        assert_eq!(code.split_whitespace().collect::<String>(), "ae<'g>bn");
        assert_eq!(comments.split_whitespace().collect::<Vec<_>>(), ["/*", "b", "/*", "c", "*/", "d", "*/", "//", "m"]);
        assert_eq!(code.lines().count(), whole.lines().count());
    }
}
