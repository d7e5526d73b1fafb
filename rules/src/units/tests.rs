use super::*;
use proptest::prelude::*;

#[test]
fn a_duration_needs_its_unit() {
    assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
    assert_eq!("2h".parse(), Ok(Span(Duration::from_secs(7200))));
    for (text, seconds) in [("1h30m", 5400), ("1.5m", 90), ("1d2h3m4s", 93_784), ("2w", 1_209_600), ("5min", 300)] {
        assert_eq!(text.parse(), Ok(Span(Duration::from_secs(seconds))), "{text}");
    }
    assert_eq!("1.5s".parse(), Ok(Span(Duration::from_millis(1500))));
    assert_eq!("36600d".parse::<Span>().map(|span| span.to_string()), Ok("36600d".to_owned()));
    let forms =
        ["", "0", "30", "1.5", "s", "-1s", "+1s", "30 s", "30S", "1h 30m", "30sago", "01:30:00", "1:30", "PT30S"];
    let parts = ["1,5s", ".5s", "1.s", "1e3s", "1.5d", "30m1h", "1s1s", "1y", "1mo", "500us", "1.5ms", "1ns", "1µs"];
    let too_long = ["36601d", "9999999d", "3162240001s", "99999999999999999999s"];
    for wrong in [&forms[..], &parts, &too_long].concat() {
        assert_eq!(wrong.parse::<Span>(), Err(WrongText), "{wrong}");
    }
}

#[test]
fn a_size_needs_its_unit() {
    assert_eq!("64KiB".parse(), Ok(Size(65_536)));
    assert_eq!("10MB".parse(), Ok(Size(10_000_000)));
    assert_eq!("1.5GiB".parse(), Ok(Size(3 << 29)));
    assert_eq!("2TB".parse(), Ok(Size(2_000_000_000_000)));
    assert_eq!("9223372036854775807B".parse(), Ok(Size(i64::MAX as u64)));
    let forms =
        ["", "B", "64", "64k", "64K", "64Ki", "64kib", "64kB", "64KIB", "64 KiB", "64iB", "64Mb", "1e3B", "-1B"];
    let parts = ["+1B", ".B", "1.2.3MB", "1,5MB", "9000PiB"];
    let too_large = ["9223372036854775808B", "99999999999GiB", "99999999999.5GiB", "99999999999999999999999B"];
    for wrong in [&forms[..], &parts, &too_large].concat() {
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
fn a_share_is_above_0_and_at_most_1() {
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

/// The parser before compound durations: a whole number and a unit.
fn one_unit(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let total = number.parse::<u64>().ok()?.checked_mul(milliseconds)?;
    (total <= 100 * 366 * 86_400_000).then(|| Duration::from_millis(total))
}

/// The parser before fractions of sizes.
fn whole_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let bytes = match unit {
        "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(bytes).filter(|total| *total <= i64::MAX as u64)
}

proptest! {
    #[test]
    fn one_number_and_unit_mean_what_they_always_did(digits in "0{0,3}[0-9]{0,21}", unit in "ms|s|m|h|d|M|S| s|") {
        let text = format!("{digits}{unit}");
        prop_assert_eq!(text.parse::<Span>().ok().map(|span| span.0), one_unit(&text), "{}", text);
    }

    #[test]
    fn whole_sizes_mean_what_they_always_did(digits in "0{0,3}[0-9]{0,21}", unit in "B|KB|MB|GB|KiB|MiB|GiB|kB|b|i|") {
        let text = format!("{digits}{unit}");
        prop_assert_eq!(text.parse::<Size>().ok().map(|size| size.0), whole_size(&text), "{}", text);
    }

    #[test]
    fn text_reads_back_as_written(ms in 0..10_000_000_000_u64, bytes in 0..u64::MAX / 4) {
        let (span, size) = (Span(Duration::from_millis(ms)), Size(bytes));
        prop_assert_eq!(span.to_string().parse(), Ok(span));
        prop_assert_eq!(size.to_string().parse(), Ok(size));
    }
}
