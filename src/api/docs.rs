//! `/docs`: the API on one page, written from its own description.
//!
//! No scripts, no fonts, nothing that a machine without internet would miss.

use std::fmt::Write;
use std::sync::OnceLock;

use axum::response::Html;
use utoipa::openapi::path::{HttpMethod, Operation};
use utoipa::openapi::{OpenApi, PathItem};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::state::AppState;

/// The page's route.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(docs))
}

/// The API on one page, for people
#[utoipa::path(get, path = "/docs", tag = "operations", security(()), responses(
    (status = 200, description = "The page", body = String, content_type = "text/html; charset=utf-8")))]
async fn docs() -> Html<&'static str> {
    static PAGE: OnceLock<String> = OnceLock::new();
    Html(PAGE.get_or_init(|| page(&super::openapi::document())))
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
<title>tunesmith: the API</title><style>\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
h2{margin-top:2.5rem;border-bottom:1px solid #ccc}code{background:#f3f3f3;padding:.1em .3em;border-radius:3px}\
details{margin:.4rem 0}summary{cursor:pointer}b.get{color:#07632c}b.post{color:#0a4d8c}b.delete{color:#a11}\
td{padding:.1rem .8rem .1rem 0;vertical-align:top}</style>";

fn page(document: &OpenApi) -> String {
    let mut html = String::from(HEAD);
    let version = escape(&document.info.version);
    let about = escape(document.info.description.as_deref().unwrap_or_default());
    write_to(
        &mut html,
        format_args!("<h1>tunesmith {version}</h1><p>{about} The same for programs: <a href=\"/openapi.yaml\">openapi.yaml</a>.</p>"),
    );
    for tag in document.tags.iter().flatten() {
        let about = escape(tag.description.as_deref().unwrap_or_default());
        write_to(&mut html, format_args!("<h2 id=\"{0}\">{0}</h2><p>{about}</p>", escape(&tag.name)));
        for (path, item) in document.paths.paths.iter() {
            for (method, operation) in operations(item) {
                if operation.tags.iter().flatten().any(|t| *t == tag.name) {
                    describe(&mut html, path, method, operation);
                }
            }
        }
    }
    html
}

fn operations(item: &PathItem) -> impl Iterator<Item = (HttpMethod, &Operation)> {
    [(HttpMethod::Get, &item.get), (HttpMethod::Post, &item.post), (HttpMethod::Delete, &item.delete)]
        .into_iter()
        .filter_map(|(method, operation)| operation.as_ref().map(|o| (method, o)))
}

fn describe(html: &mut String, path: &str, method: HttpMethod, operation: &Operation) {
    let name = match method {
        HttpMethod::Post => "post",
        HttpMethod::Delete => "delete",
        _ => "get",
    };
    let summary = escape(operation.summary.as_deref().unwrap_or_default());
    write_to(
        html,
        format_args!("<details><summary><b class=\"{name}\">{}</b> <code>{}</code> {summary}</summary>", name.to_uppercase(), escape(path)),
    );
    if let Some(text) = &operation.description {
        write_to(html, format_args!("<p>{}</p>", escape(text)));
    }
    html.push_str("<table>");
    for parameter in operation.parameters.iter().flatten() {
        if let utoipa::openapi::RefOr::T(parameter) = parameter {
            let text = escape(parameter.description.as_deref().unwrap_or_default());
            write_to(html, format_args!("<tr><td><code>{}</code><td>{text}", escape(&parameter.name)));
        }
    }
    for (status, answer) in &operation.responses.responses {
        if let utoipa::openapi::RefOr::T(answer) = answer {
            write_to(html, format_args!("<tr><td>{}<td>{}", escape(status), escape(&answer.description)));
        }
    }
    html.push_str("</table></details>");
}

/// Writing to a string cannot fail.
fn write_to(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text).expect("a string takes whatever is written to it");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_lists_every_path_and_loads_nothing() {
        let document = super::super::openapi::document();
        let html = page(&document);
        for path in document.paths.paths.keys() {
            assert!(html.contains(&escape(path)), "{path}");
        }
        assert!(!html.contains("<script") && !html.contains("http://") && !html.contains("https://"));
    }
}
