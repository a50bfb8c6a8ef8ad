//! `/docs`: the API on one page, written from its own description.
//!
//! No scripts, no fonts, nothing that a machine without internet would miss.

use std::fmt::Write;
use std::sync::OnceLock;

use axum::response::Html;
use utoipa::openapi::path::{HttpMethod, Operation};
use utoipa::openapi::schema::{ArrayItems, SchemaType, Type};
use utoipa::openapi::{Content, OpenApi, PathItem, RefOr, Schema};
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
    shapes(&mut html, document);
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
    html.push_str("</table>");
    if let Some(RefOr::T(body)) = &operation.request_body
        && let Some(schema) = body.content.values().find_map(body_schema)
    {
        write_to(html, format_args!("<p>Body: {}</p>", kind(schema)));
    }
    html.push_str("</details>");
}

fn body_schema(content: &RefOr<Content>) -> Option<&RefOr<Schema>> {
    match content {
        RefOr::T(content) => content.schema.as_ref(),
        RefOr::Ref(_) => None,
    }
}

/// Every named shape with its fields; the descriptions of bodies and of other shapes lead here.
fn shapes(html: &mut String, document: &OpenApi) {
    html.push_str("<h2 id=\"shapes\">shapes</h2>");
    for (name, schema) in document.components.iter().flat_map(|c| &c.schemas) {
        let name = escape(name);
        write_to(html, format_args!("<details><summary><code>{name}</code></summary><div id=\"shape-{name}\">"));
        match schema {
            RefOr::T(Schema::Object(object)) if !object.properties.is_empty() => {
                html.push_str("<table>");
                for (field, schema) in &object.properties {
                    let needed = if object.required.contains(field) { ", required" } else { "" };
                    let (kind, about) = (kind(schema), escape(about(schema)));
                    write_to(html, format_args!("<tr><td><code>{}</code><td>{kind}{needed}<td>{about}", escape(field)));
                }
                html.push_str("</table>");
            }
            other => write_to(html, format_args!("<p>{} {}</p>", kind(other), escape(about(other)))),
        }
        html.push_str("</div></details>");
    }
}

/// What a schema takes, in a few words, as HTML.
fn kind(schema: &RefOr<Schema>) -> String {
    let any = |items: &[RefOr<Schema>]| items.iter().map(kind).filter(|k| k != "null").collect::<Vec<_>>().join(" or ");
    match schema {
        RefOr::Ref(link) => {
            let name = escape(link.ref_location.rsplit('/').next().unwrap_or_default());
            format!("<a href=\"#shape-{name}\">{name}</a>")
        }
        RefOr::T(Schema::OneOf(one)) => any(&one.items),
        RefOr::T(Schema::AllOf(all)) => any(&all.items),
        RefOr::T(Schema::AnyOf(any_of)) => any(&any_of.items),
        RefOr::T(Schema::Array(array)) => match &array.items {
            ArrayItems::RefOrSchema(item) => format!("list of {}", kind(item)),
            ArrayItems::False => "list".to_owned(),
        },
        RefOr::T(Schema::Object(object)) => match &object.enum_values {
            Some(values) => escape(&values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")),
            None => types(&object.schema_type),
        },
        RefOr::T(_) => String::new(),
    }
}

fn types(kind: &SchemaType) -> String {
    let name = |kind: &Type| serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    match kind {
        SchemaType::Type(one) => name(one),
        SchemaType::Array(several) => several.iter().map(name).filter(|n| n != "null").collect::<Vec<_>>().join(" or "),
        SchemaType::AnyValue => "any value".to_owned(),
    }
}

fn about(schema: &RefOr<Schema>) -> &str {
    let text = match schema {
        RefOr::Ref(link) => return &link.description,
        RefOr::T(Schema::OneOf(one)) => &one.description,
        RefOr::T(Schema::AllOf(all)) => &all.description,
        RefOr::T(Schema::AnyOf(any_of)) => &any_of.description,
        RefOr::T(Schema::Array(array)) => &array.description,
        RefOr::T(Schema::Object(object)) => &object.description,
        RefOr::T(_) => return "",
    };
    text.as_deref().unwrap_or_default()
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
        for field in ["learning_rate", "lora_alpha", "text_column", "max_output_tokens", "lora_path"] {
            assert!(html.contains(&format!("<code>{field}</code>")), "{field}");
        }
        assert!(!html.contains("<script") && !html.contains("http://") && !html.contains("https://"));
    }
}
