use super::*;

#[test]
fn zero_retention_is_rejected_and_a_very_long_one_accepted() {
    let now: Timestamp = "2026-11-24T14:00:00Z".parse().unwrap();
    assert!(before(now, 0).is_err());
    assert_eq!(before(now, 86_400).unwrap().to_string(), "2026-11-23T14:00:00Z");
    assert_eq!(before(now, i64::MAX as u64).unwrap(), Timestamp::UNIX_EPOCH);
}
