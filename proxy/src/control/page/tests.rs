use super::*;

#[test]
fn the_page_needs_no_other_host_and_no_inline_code() {
    for source in [STYLE, SCRIPT] {
        assert!(!source.contains("http:") && !source.contains("https:") && !source.contains("url("), "{source}");
    }
    let sources = [
        include_str!("layout.rs"),
        include_str!("panels.rs"),
        include_str!("panels/traffic.rs"),
        include_str!("panels/protection.rs"),
        include_str!("panels/changes.rs"),
        include_str!("html.rs"),
    ];
    for source in sources {
        assert!(
            !source.contains("style=") && !source.contains("onclick="),
            "the policy allows no inline style or script"
        );
    }
}

#[test]
fn an_unchanged_asset_is_not_sent_again() {
    let first = asset(&HeaderMap::new(), "text/css", STYLE);
    let tag = first.headers()[header::ETAG].clone();
    assert_eq!(
        asset(&HeaderMap::from_iter([(header::IF_NONE_MATCH, tag)]), "text/css", STYLE).status(),
        StatusCode::NOT_MODIFIED
    );
}
