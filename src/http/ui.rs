//! The page at `/`: static files in the binary. They hold nothing secret, so they are for everybody; the
//! page asks the API for everything it shows, with the token of whoever looks at it.

use axum::{body::Body, extract::Path, http::HeaderMap, response::Response};

use super::error::{self, ApiError, Fault};

/// Nothing but these files may run or be loaded, and nobody may put the page into a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'";

const JS: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// The parts of the page: name below `/ui/`, type, content.
const PARTS: [(&str, &str, &str); 11] = [
    ("app.js", JS, include_str!("ui/app.js")),
    ("api.js", JS, include_str!("ui/api.js")),
    ("say.js", JS, include_str!("ui/say.js")),
    ("graph.js", JS, include_str!("ui/graph.js")),
    ("charts.js", JS, include_str!("ui/charts.js")),
    ("console.js", JS, include_str!("ui/console.js")),
    ("tokens.js", JS, include_str!("ui/tokens.js")),
    ("app.css", CSS, include_str!("ui/app.css")),
    ("icon.svg", "image/svg+xml", include_str!("ui/icon.svg")),
    ("uplot.js", JS, include_str!("ui/uplot-1.6.32/uPlot.iife.min.js")),
    ("uplot.css", CSS, include_str!("ui/uplot-1.6.32/uPlot.min.css")),
];

/// `GET /`.
pub(super) async fn page() -> Response {
    answer("text/html; charset=utf-8", include_str!("ui/index.html"))
}

/// `GET /ui/{file}`.
pub(super) async fn part(Path(file): Path<String>) -> Result<Response, ApiError> {
    match PARTS.iter().find(|(name, _, _)| *name == file) {
        Some((_, kind, content)) => Ok(answer(kind, content)),
        None => Err(ApiError::new(Fault::NotFound, "the page has no such part")),
    }
}

fn answer(kind: &'static str, content: &'static str) -> Response {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        // Another version of the program has other files under the same names.
        ("cache-control", "no-cache"),
    ] {
        error::set(&mut headers, name, value);
    }
    error::ok(kind, headers, Body::from(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("ui/index.html");

    #[tokio::test]
    async fn the_page_is_whole_and_says_what_may_run() {
        for response in [page().await, part(Path("app.js".to_owned())).await.unwrap()] {
            let policy = response.headers()["content-security-policy"].to_str().unwrap();
            assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
            assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'));
            assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        }
        assert!(part(Path("../auth.rs".to_owned())).await.is_err());
        // What the page names is there, and what is there is named by the page or by another part.
        for (name, _, _) in PARTS {
            let named =
                |text: &str| text.contains(&format!("/ui/{name}")) || text.contains(&format!("./{name}"));
            assert!(named(PAGE) || PARTS.iter().any(|(_, _, text)| named(text)), "nobody loads {name}");
        }
        for link in PAGE.split("\"/ui/").skip(1) {
            let name = link.split('"').next().unwrap();
            assert!(PARTS.iter().any(|(part, _, _)| *part == name), "{name} is not there");
        }
    }

    /// What the policy would refuse, and what would leave the machine.
    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        let own = PARTS.iter().filter(|(name, _, _)| !name.starts_with("uplot"));
        for (name, text) in own.map(|(name, _, text)| (*name, *text)).chain([("index.html", PAGE)]) {
            for word in
                ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "document.cookie"]
            {
                assert!(!text.contains(word), "{name}: {word}");
            }
            // The name of SVG is no address that is asked.
            let addresses = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!addresses.contains("://"), "{name} names an address");
            if name.ends_with(".html") {
                assert!(!text.contains("style=") && !text.contains("onclick") && !text.contains("<style"));
                assert!(text.split("<script").skip(1).all(|tag| tag.contains("src=\"/ui/")), "{name}");
            }
        }
        assert!(include_str!("ui/uplot-1.6.32/LICENSE").starts_with("The MIT License"));
    }
}
