//! The status page: the snapshot for a browser, in one piece, with nothing from elsewhere and no script.

use std::fmt::Write as _;

use super::snapshot::{Phase, Snapshot};
use super::summary;

/// How often a browser asks again.
const REFRESH_SECONDS: u32 = 5;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1d2530;--faint:#66717f;--paper:#f6f7f9;--card:#fff;--line:#dfe3e8;--good:#1a7f45;--bad:#b3261e}\
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ee;--faint:#93a0b0;--paper:#12161c;--card:#1a2029;--line:#2b333f;--good:#5fd08c;--bad:#ff8a80}}\
*{box-sizing:border-box}\
body{margin:0 auto;padding:2rem 1rem;max-width:56rem;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}\
h1{font-size:1.5rem;margin:0 0 1.25rem;display:flex;gap:.75rem;align-items:center;flex-wrap:wrap}\
h2{font-size:.8rem;margin:0 0 .5rem;text-transform:uppercase;letter-spacing:.06em;color:var(--faint)}\
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.25rem;margin:0 0 1rem}\
table{border-collapse:collapse;width:100%}\
th{font-weight:400;text-align:left;color:var(--faint);width:11rem;vertical-align:top;padding:.1rem 1rem .1rem 0}\
td{padding:.1rem 0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}\
b{font-size:.85rem;font-weight:600;padding:.1rem .7rem;border:1px solid;border-radius:1rem}\
b.good{color:var(--good)}b.bad{color:var(--bad)}\
meter{width:100%;height:.9rem;margin:.1rem 0 .4rem}\
footer{color:var(--faint);font-size:.85rem}a{color:inherit}";

/// The page `/`.
pub fn html(snapshot: &Snapshot) -> String {
    let is_well = snapshot.phase == Phase::Serving && snapshot.store.as_ref().is_none_or(|s| s.read_only.is_none());
    let (class, word) = match (snapshot.phase, is_well) {
        (Phase::Serving, true) => ("good", "serving"),
        (Phase::Serving, false) => ("bad", "serving, read-only"),
        (phase, _) => ("bad", phase.name()),
    };
    let name = escaped(&snapshot.name);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name} · casbah</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><meta http-equiv=\"refresh\" content=\"{REFRESH_SECONDS}\">\n\
         <style>{STYLE}</style></head><body>\n<h1>{name} <b class=\"{class}\">{word}</b></h1>\n"
    );
    for group in summary::groups(snapshot) {
        let _infallible = writeln!(page, "<section><h2>{}</h2>", group.title);
        if let Some(percent) = group.used_percent {
            let percent = percent.min(100);
            let _infallible =
                writeln!(page, "<meter min=\"0\" max=\"100\" value=\"{percent}\">{percent} % used</meter>");
        }
        page.push_str("<table>\n");
        for (name, value) in &group.rows {
            let head = if name.is_empty() { String::new() } else { format!("<th scope=\"row\">{name}</th>") };
            let _infallible = writeln!(page, "<tr>{head}<td>{}</td></tr>", escaped(value));
        }
        page.push_str("</table></section>\n");
    }
    page.push_str(
        "<footer>The same for machines: <a href=\"/status.json\">status.json</a>, <a href=\"/metrics\">metrics</a>; for \
         probes: <a href=\"/livez\">livez</a>, <a href=\"/readyz\">readyz</a>, <a href=\"/startupz\">startupz</a>. \
         This page asks anew every few seconds.</footer>\n</body></html>\n",
    );
    page
}

/// Text between tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_comes_from_elsewhere_and_nothing_runs() {
        let page = html(&Snapshot::sample());
        for word in ["<script", "http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn what_is_shown_is_text() {
        let page = html(&Snapshot { dir: "/<script>&\"".into(), ..Snapshot::sample() });
        assert!(page.contains("/&lt;script&gt;&amp;&quot;"), "{page}");
    }

    #[test]
    fn the_state_is_told_in_words() {
        let phase = |phase| html(&Snapshot { phase, store: None, ..Snapshot::sample() });
        assert!(phase(Phase::Serving).contains("<b class=\"good\">serving</b>"));
        assert!(phase(Phase::Draining).contains("<b class=\"bad\">draining</b>"));
        assert!(html(&Snapshot::sample()).contains("serving, read-only"));
    }
}
