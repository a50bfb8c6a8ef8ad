//! Keeps foreign web pages away from a server that has no keys.
//!
//! Any web page can post a form to 127.0.0.1, and by rebinding its own name to 127.0.0.1 read the answer. So without keys
//! the Host header must be a name of loopback, and an Origin must be loopback or a configured one. With keys a page
//! would have to know a key, and nothing is checked.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, shorten};
use super::state::AppState;

/// Refuses what a browser may send on behalf of a foreign page.
pub async fn refuse_foreign(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if state.keys.is_empty()
        && let Err(error) = check(request.headers(), request.uri(), &state.config.cors_origin)
    {
        return error.into_response();
    }
    next.run(request).await
}

fn check(headers: &HeaderMap, uri: &Uri, allowed: &[String]) -> Result<(), ApiError> {
    let forbidden = |message| Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_origin", message));
    let mut hosts = headers.get_all(header::HOST).iter();
    // HTTP/2 sends the host as part of the target.
    let host = match (hosts.next(), uri.authority()) {
        (Some(host), _) => host.to_str().unwrap_or("").to_owned(),
        (None, Some(authority)) => authority.as_str().to_owned(),
        (None, None) => String::new(),
    };
    if hosts.next().is_some() || !is_loopback_host(&host) {
        return forbidden(format!(
            "The Host `{}` is not this machine's loopback name. Call 127.0.0.1 or localhost, or start the server with --api-key.",
            shorten(&host)
        ));
    }
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("");
        if !is_loopback_origin(origin) && !allowed.iter().any(|a| a == origin || a == "*") {
            return forbidden(format!("The origin `{}` may not call this server; start it with --cors-origin {0}.", shorten(origin)));
        }
    }
    Ok(())
}

/// `localhost`, `127.x.y.z` or `[::1]`, with or without a port.
fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, "")) => name,
            Some((name, port)) if is_port(port) => name,
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

fn is_loopback_origin(origin: &str) -> bool {
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    rest.is_some_and(is_loopback_host)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ask(host: &str, origin: Option<&str>, allowed: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        let allowed: Vec<String> = allowed.iter().map(|s| s.to_string()).collect();
        check(&headers, &"/v1/models".parse().unwrap(), &allowed).is_ok()
    }

    #[test]
    fn loopback_names_pass() {
        for host in ["127.0.0.1", "127.0.0.1:8080", "LOCALHOST:1", "[::1]", "[::1]:80", "127.1.2.3"] {
            assert!(ask(host, None, &[]), "{host}");
        }
    }

    #[test]
    fn rebound_and_disguised_names_are_refused() {
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8080",
            "[::1].evil.example",
            "10.0.0.1",
            "",
            "localhost:80:evil",
        ] {
            assert!(!ask(host, None, &[]), "{host}");
        }
    }

    #[test]
    fn a_foreign_origin_is_refused_unless_it_is_configured() {
        assert!(!ask("localhost", Some("https://evil.example"), &[]));
        assert!(!ask("localhost", Some("null"), &[]));
        assert!(!ask("localhost", Some("http://localhost.evil.example"), &[]));
        assert!(ask("localhost", Some("https://app.example"), &["https://app.example"]));
        assert!(ask("localhost", Some("http://localhost:3000"), &[]));
    }

    #[test]
    fn a_request_without_a_host_is_refused() {
        assert!(check(&HeaderMap::new(), &"/".parse().unwrap(), &[]).is_err());
        assert!(check(&HeaderMap::new(), &"http://localhost/".parse().unwrap(), &[]).is_ok());
    }
}
