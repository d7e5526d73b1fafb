//! `outrigger explain`: the route from the rules, and the response that a rejected client gets.

use std::net::IpAddr;

use http::HeaderMap;
use outrigger_rules::config::Config;
use outrigger_rules::explain::{self, ExplainError, Refused, Told};

use crate::engine::rejection::Rejection;

/// See [`explain::explain`].
///
/// # Errors
/// The arguments are not a request.
pub fn explain(
    config: &Config,
    from: IpAddr,
    method: &str,
    target: &str,
    headers: &HeaderMap,
) -> Result<String, ExplainError> {
    let told = |refused| {
        let rejection = match refused {
            Refused::RepeatedCredential => Rejection::RepeatedCredential,
            Refused::Path(refused) => refused.into(),
        };
        let problem = rejection.problem();
        Told { status: problem.status.as_u16(), label: problem.label, detail: problem.detail }
    };
    explain::explain(config, from, method, target, headers, told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_rules::explain::field;
    use std::path::Path;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn config() -> Config {
        let source = r#"
            [[routes]]
            name = "search"
            path = "/api/v1/documents/search"
            methods = ["POST"]
        "#;
        Config::parse(Path::new("test.toml"), source, &|_| None).unwrap()
    }

    #[test]
    fn explains_rejections() {
        let explained = |path| explain(&config(), HERE, "POST", path, &HeaderMap::new()).unwrap();
        insta::assert_snapshot!(explained("/api%2Fv1/documents/search"));
        for (path, label) in [
            ("/a/../b", "path_dot_segment"),
            ("/a%00", "path_control_character"),
            ("/metrics", "not_public"),
            ("/a//b;c%2F%5C%3F.%20/%25252F;", "path_ambiguous"),
        ] {
            assert!(
                explained(path).starts_with("refused        4") && explained(path).contains(label),
                "{}",
                explained(path)
            );
        }
        let twice = HeaderMap::from_iter(["a", "b"].map(|key| field(&format!("X-Api-Key: {key}")).unwrap()));
        assert!(explain(&config(), HERE, "GET", "/", &twice).unwrap().contains("repeated_credential"));
    }
}
