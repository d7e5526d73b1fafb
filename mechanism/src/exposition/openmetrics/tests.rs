use super::*;

#[test]
fn the_scraper_decides() {
    let is_wanted = |accept: &str| is_wanted([accept].into_iter().filter(|accept| !accept.is_empty()));
    for accept in [
        "",
        "*/*",
        "text/plain",
        "text/html,application/xhtml+xml,*/*;q=0.8",
        "text/plain;version=0.0.4;q=1,*/*;q=0.1",
        "application/openmetrics-text;version=0.0.1",
        "application/openmetrics-text;version=2.0.0",
        "application/openmetrics-text;version=1.0.0;q=0",
        "application/openmetrics-text;q=nonsense",
        "application/openmetrics-text;q=0.5,text/plain;q=0.6",
        "application/json",
    ] {
        assert!(!is_wanted(accept), "{accept}");
    }
    for accept in [
        "application/openmetrics-text",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        "Application/OpenMetrics-Text; Version=\"1.0.0\"",
        "application/openmetrics-text,*/*",
        "application/openmetrics-text;q=0.5,text/plain;q=0.5",
        // Prometheus 2 and 3.
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
         text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;\
         version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    ] {
        assert!(is_wanted(accept), "{accept}");
    }
}

#[test]
fn families_are_said_in_openmetrics() {
    let page = "# HELP a_seconds_total Time \"spent\".\n# TYPE a_seconds_total counter\na_seconds_total{x=\"\\\"1\"} 2.5\n\
                # HELP b_bytes Now.\n# TYPE b_bytes gauge\nb_bytes 3 -1500\n\
                # HELP u No help given.\n# TYPE u untyped\nu 4\n\
                # TYPE h_seconds histogram\nh_seconds_bucket{le=\"0.0005\"} 1\nh_seconds_bucket{le=\"1\"} 2\n\
                h_seconds_bucket{le=\"1000000\"} 2\nh_seconds_bucket{le=\"+Inf\"} 3\nh_seconds_sum 9\nh_seconds_count 3\n\
                # TYPE s summary\ns{quantile=\"1\"} 5\ns_count 2\ns{x=\"1\",quantile=\"0.5\"} 6\ns_sum 7\n";
    insta::assert_snapshot!(translate(page, &Exemplars::new()), @r#"
    # TYPE a_seconds counter
    # UNIT a_seconds seconds
    # HELP a_seconds Time \"spent\".
    a_seconds_total{x="\"1"} 2.5
    # TYPE b_bytes gauge
    # UNIT b_bytes bytes
    # HELP b_bytes Now.
    b_bytes 3 -1.500
    # TYPE u unknown
    # HELP u No help given.
    u 4
    # TYPE h_seconds histogram
    # UNIT h_seconds seconds
    h_seconds_bucket{le="0.0005"} 1
    h_seconds_bucket{le="1.0"} 2
    h_seconds_bucket{le="1e+06"} 2
    h_seconds_bucket{le="+Inf"} 3
    h_seconds_sum 9
    h_seconds_count 3
    # TYPE s summary
    s{quantile="1.0"} 5
    s_count 2
    s_sum 7
    s{x="1",quantile="0.5"} 6
    # EOF
    "#);
    assert_eq!(translate("", &Exemplars::new()), "# EOF\n");
}

#[test]
fn what_openmetrics_does_not_allow_loses_its_type_and_no_sample() {
    for page in [
        // Names.
        "# TYPE jobs counter\njobs 1\n",
        "# TYPE jobs_total counter\njobs_total 1\n# TYPE jobs_created untyped\njobs_created 2\n",
        "# TYPE jobs_total counter\njobs_total 1\n# TYPE jobs gauge\njobs 2\n",
        "# TYPE h_seconds histogram\nh_seconds_bucket{le=\"+Inf\"} 1\nh_seconds_sum 1\nh_seconds_count 1\n\
         # TYPE h_seconds_created gauge\nh_seconds_created 2\n",
        // Values.
        "# TYPE a_total counter\na_total -1\n",
        "# TYPE a_total counter\na_total NaN\n",
        "# TYPE s summary\ns{quantile=\"2\"} 1\n",
        "# TYPE s summary\ns{quantile=\"0.5\"} -1\n",
        "# TYPE s summary\ns_sum -1\n",
        "# TYPE s summary\ns_sum 1 1000\ns_count 1\n",
        "# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
        "# TYPE h histogram\nh_bucket{le=\"1\"} 0.5\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
        "# TYPE h histogram\nh_bucket{le=\"-1\"} 0\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
        "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 2\n",
        "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_count 1\n",
    ] {
        let shown = translate(page, &Exemplars::new());
        let samples = |page: &str| page.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples(page), samples(&shown), "{shown}");
        assert!(
            shown.lines().filter(|line| line.starts_with("# TYPE")).any(|line| line.ends_with("unknown")),
            "{shown}"
        );
        for kind in ["counter", "summary", "histogram"] {
            assert!(!shown.contains(&format!(" {kind}\n")), "{shown}");
        }
    }
}

#[test]
fn a_bucket_may_have_an_exemplar() {
    let page = "# TYPE a_seconds histogram\na_seconds_bucket{route=\"x\",le=\"1\"} 1\na_seconds_bucket{route=\"x\",le=\"+Inf\"} 1\n\
                a_seconds_sum{route=\"x\"} 0.5\na_seconds_count{route=\"x\"} 1\n";
    let exemplar = "{trace_id=\"1\"} 0.5 1.000";
    let exemplars = [("a_seconds_bucket{route=\"x\",le=\"1\"}".to_owned(), exemplar.to_owned())].into();
    let shown = translate(page, &exemplars);
    assert!(shown.contains("a_seconds_bucket{route=\"x\",le=\"1.0\"} 1 # {trace_id=\"1\"} 0.5 1.000\n"), "{shown}");
    assert_eq!(shown.matches(" # ").count(), 1);
}
