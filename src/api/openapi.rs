//! The API's description, made of the routes themselves.
//!
//! `tunesmith openapi` prints it, `GET /openapi.yaml` serves it, and the copy in the repository is under test. What every
//! operation can answer besides its own statuses is added here once.

use std::sync::OnceLock;

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use utoipa::OpenApi as _;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, PathItem, RefOr, ResponseBuilder, SecurityRequirement};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{ErrorBody, ErrorObject};
use super::state::AppState;

/// The document's own route.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(openapi_yaml))
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "tunesmith",
        description = "Fine-tunes language models and serves the result. Paths, names, lists and errors are OpenAI's wherever OpenAI has one.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        contact()
    ),
    components(schemas(ErrorBody, ErrorObject)),
    tags(
        (name = "files", description = "Data sets and results"),
        (name = "fine-tuning", description = "Jobs: filing, following, stopping"),
        (name = "models", description = "What was trained here"),
        (name = "adapters", description = "Adapters that were trained elsewhere"),
        (name = "inference", description = "Questions to models"),
        (name = "operations", description = "Probes and descriptions")
    )
)]
struct Frame;

/// The whole document.
pub fn document() -> OpenApi {
    let (_, routes) = super::routes(|quick| quick).split_for_parts();
    let mut document = Frame::openapi();
    document.merge(routes);
    document.security = Some(vec![SecurityRequirement::default(), SecurityRequirement::new("api_key", Vec::<String>::new())]);
    let components = document.components.get_or_insert_default();
    components.security_schemes.insert("api_key".to_owned(), SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)).into());
    for item in document.paths.paths.values_mut() {
        operations(item).into_iter().flatten().for_each(add_common_answers);
    }
    document
}

/// The document as text.
pub fn yaml() -> Result<String, String> {
    document().to_yaml().map_err(|e| format!("the OpenAPI document cannot be written: {e}"))
}

fn operations(item: &mut PathItem) -> [Option<&mut Operation>; 5] {
    [item.get.as_mut(), item.post.as_mut(), item.delete.as_mut(), item.put.as_mut(), item.patch.as_mut()]
}

/// What the layers can answer in front of any handler.
fn add_common_answers(operation: &mut Operation) {
    let mut common = vec![
        (400, "The request is wrong; `param` names the field"),
        (401, "No API key, or a wrong one"),
        (403, "A foreign Host or Origin"),
        (500, "A fault of the server"),
        (503, "Not now; Retry-After says when"),
    ];
    if operation.request_body.is_some() {
        common.extend([
            (408, "The body stood still for too long"),
            (413, "The body is too large"),
            (415, "Another content type is wanted"),
        ]);
    }
    for (status, text) in common {
        operation.responses.responses.entry(status.to_string()).or_insert_with(|| error_answer(text));
    }
}

fn error_answer(text: &str) -> RefOr<utoipa::openapi::Response> {
    let schema = utoipa::openapi::Ref::from_schema_name("ErrorBody");
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description(text).content("application/json", content).build().into()
}

/// This document
#[utoipa::path(get, path = "/openapi.yaml", tag = "operations", security(()), responses(
    (status = 200, description = "The API's description", body = String, content_type = "application/yaml")))]
async fn openapi_yaml() -> impl IntoResponse {
    static TEXT: OnceLock<Result<String, String>> = OnceLock::new();
    match TEXT.get_or_init(yaml) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/yaml")], text.clone()).into_response(),
        Err(why) => super::ApiError::internal(why).into_response(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_operation_documents_its_errors() {
        let mut document = document();
        let mut count = 0;
        for (path, item) in document.paths.paths.iter_mut() {
            for operation in operations(item).into_iter().flatten() {
                count += 1;
                assert!(operation.responses.responses.contains_key("400"), "{path}");
                assert!(operation.tags.as_ref().is_some_and(|t| !t.is_empty()), "{path} has no tag");
                assert!(operation.summary.is_some(), "{path} has no summary");
            }
        }
        assert!(count > 15);
    }

    #[test]
    fn every_reference_has_its_schema() {
        let text = yaml().unwrap();
        let known = document().components.unwrap().schemas;
        for name in text.split("#/components/schemas/").skip(1) {
            let name: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            assert!(known.contains_key(&name), "{name} is referred to and not there");
        }
    }
}
