use super::*;
use proptest::prelude::*;

#[test]
fn a_duration_needs_its_unit() {
    assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
    assert_eq!("2h".parse(), Ok(Span(Duration::from_secs(7200))));
    for wrong in ["", "30", "s", "1.5s", "-1s", "30 s", "30S", "99999999999999999999s", "9999999d"] {
        assert_eq!(wrong.parse::<Span>(), Err(WrongText), "{wrong}");
    }
}

#[test]
fn a_size_needs_its_unit() {
    assert_eq!("64KiB".parse(), Ok(Size(65_536)));
    assert_eq!("10MB".parse(), Ok(Size(10_000_000)));
    for wrong in ["", "64", "64k", "64kib", "1e3B", "99999999999GiB"] {
        assert_eq!(wrong.parse::<Size>(), Err(WrongText), "{wrong}");
    }
}

#[test]
fn an_app_address_is_a_socket_or_a_host_and_port() {
    assert_eq!("unix:/run/a.sock".parse(), Ok(AppAddress::Unix("/run/a.sock".into())));
    assert_eq!("[::1]:3000".parse(), Ok(AppAddress::Tcp("[::1]:3000".into())));
    for wrong in ["", "unix:", "3000", "localhost", "host:0", "host:70000", "http://a:1", "::1:3000", ":80"] {
        assert_eq!(wrong.parse::<AppAddress>(), Err(WrongText), "{wrong}");
    }
    assert_eq!(format!("unix:/{}", "x".repeat(107)).parse::<AppAddress>(), Err(WrongText));
}

#[test]
fn a_share_is_above_nothing_and_at_most_all() {
    assert_eq!("50%".parse(), Ok(Share(0.5)));
    assert_eq!("2.5%".parse::<Share>().unwrap().to_string(), "2.5%");
    assert_eq!("29%".parse::<Share>().unwrap().to_string(), "29%");
    assert_eq!("off".parse(), Ok(OptionalShare::from_str("off").unwrap()));
    for wrong in ["", "50", "0%", "101%", "-1%", "1e1%", "%", "inf%", "nan%", " 5%", "+5%"] {
        assert_eq!(wrong.parse::<Share>(), Err(WrongText), "{wrong}");
    }
}

#[test]
fn a_window_is_a_time_or_a_number_of_calls() {
    assert_eq!("10s".parse(), Ok(CallWindow(breaker::Span::Time(Duration::from_secs(10)))));
    assert_eq!("100 calls".parse(), Ok(CallWindow(breaker::Span::Calls(100))));
    for wrong in ["", "0s", "100", "0 calls", "10001 calls", "calls", "-1 calls", "1.5 calls"] {
        assert_eq!(wrong.parse::<CallWindow>(), Err(WrongText), "{wrong}");
    }
}

proptest! {
    #[test]
    fn text_reads_back_as_written(ms in 0..10_000_000_000_u64, bytes in 0..u64::MAX / 4) {
        let (span, size) = (Span(Duration::from_millis(ms)), Size(bytes));
        prop_assert_eq!(span.to_string().parse(), Ok(span));
        prop_assert_eq!(size.to_string().parse(), Ok(size));
    }
}
