use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn subject(id: &str) -> Subject<'_> {
    Subject { id, user: Some(id), address: IpAddr::from([192, 0, 2, 7]) }
}

fn from_env(pairs: &[(&str, &str)]) -> Result<Flag, FlagError> {
    let env: HashMap<String, String> =
        pairs.iter().map(|(k, v)| (format!("FF_ENABLE_AUDIT_TRAIL{k}"), (*v).to_owned())).collect();
    Flag::default().overridden_by(Feature::AuditTrail, |name| env.get(name).cloned())
}

#[test]
fn hashes_as_the_reference_implementation_does() {
    let hash = |text: &str| murmur3_32(text.bytes());
    assert_eq!(hash(""), 0);
    assert_eq!(hash("test"), 0xba6b_d213);
    assert_eq!(hash("Hello, world!"), 0xc036_3e43);
    assert_eq!(hash("The quick brown fox jumps over the lazy dog"), 0x2e4f_f723);
}

#[test]
fn normalises_as_unleash_does() {
    // Values from Unleash's client specification.
    assert_eq!(bucket("gr1", "123"), 73);
    assert_eq!(bucket("groupX", "999"), 25);
}

#[test]
fn reads_the_environment_as_it_is_deployed_today() {
    assert_eq!(from_env(&[]).unwrap(), Flag::default());
    assert_eq!(from_env(&[("", "false")]).unwrap().switch, Switch::Off);
    assert_eq!(from_env(&[("", "monitor")]).unwrap().switch, Switch::Monitor);
    assert_eq!(from_env(&[("", "10%")]).unwrap().switch, Switch::On(Percentage(10)));
    assert_eq!(from_env(&[("", "true"), ("_PERCENTAGE", "25")]).unwrap().switch, Switch::On(Percentage(25)));
    assert_eq!(from_env(&[("", "false"), ("_PERCENTAGE", "25")]).unwrap().switch, Switch::Off);
    assert_eq!(from_env(&[("_PERCENTAGE", "25%")]).unwrap().switch, Switch::On(Percentage(25)));
    let flag = from_env(&[("_USERS", "ann, bob"), ("_IPS", "10.0.0.0/8,::1")]).unwrap();
    assert_eq!(flag.users, ["ann", "bob"]);
    assert_eq!(flag.networks.len(), 2);
}

#[test]
fn names_the_variable_that_cannot_be_read() {
    let problem = |pairs: &[(&str, &str)]| from_env(pairs).unwrap_err().to_string();
    assert_eq!(
        problem(&[("", "yes")]),
        "FF_ENABLE_AUDIT_TRAIL needs true, false, \"monitor\" or a percentage such as \"10%\", got \"yes\""
    );
    assert_eq!(problem(&[("_PERCENTAGE", "101")]), "FF_ENABLE_AUDIT_TRAIL_PERCENTAGE needs 0 to 100, got \"101\"");
    assert!(problem(&[("_IPS", "10.0.0.0/33")]).starts_with("FF_ENABLE_AUDIT_TRAIL_IPS needs an address"));
}

#[test]
fn an_allow_list_beats_the_percentage_but_not_off() {
    let mut flag = Flag { users: vec!["ann".into()], ..Flag::always(Switch::On(Percentage(0))) };
    assert_eq!(flag.mode_for(Feature::AuditTrail, subject("ann")), Mode::Enforce);
    assert_eq!(flag.mode_for(Feature::AuditTrail, subject("bob")), Mode::Off);
    flag.switch = Switch::Monitor;
    assert_eq!(flag.mode_for(Feature::AuditTrail, subject("ann")), Mode::Enforce);
    assert_eq!(flag.mode_for(Feature::AuditTrail, subject("bob")), Mode::Monitor);
    flag.switch = Switch::Off;
    assert_eq!(flag.mode_for(Feature::AuditTrail, subject("ann")), Mode::Off);
}

#[test]
fn a_network_holds_its_own_addresses_only() {
    let network: Network = "10.1.0.0/16".parse().unwrap();
    assert!(network.contains("10.1.255.255".parse().unwrap()));
    assert!(network.contains("::ffff:10.1.2.3".parse().unwrap()));
    assert!(!network.contains("10.2.0.0".parse().unwrap()));
    assert!(!network.contains("fdaa::1".parse().unwrap()));
    let everything: Network = "0.0.0.0/0".parse().unwrap();
    assert!(everything.contains("203.0.113.9".parse().unwrap()));
}

#[test]
fn a_tenth_is_a_tenth() {
    let share = Percentage(10);
    let inside = (0..10_000).filter(|n| share.includes("FF_ENABLE_AUDIT_TRAIL", &format!("user-{n}"))).count();
    assert!((900..=1100).contains(&inside), "{inside} of 10,000");
}

proptest! {
    #[test]
    fn a_client_in_the_rollout_stays_in_when_the_percentage_grows(id in ".{0,40}", small in 0..=100_u8, more in 0..=100_u8) {
        let (small, large) = (Percentage(small.min(more)), Percentage(small.max(more)));
        prop_assert!(!small.includes("g", &id) || large.includes("g", &id));
    }

    #[test]
    fn every_client_has_a_bucket_from_1_to_100(group in ".{0,20}", id in ".{0,40}") {
        prop_assert!((1..=100).contains(&bucket(&group, &id)));
    }

    #[test]
    fn a_switch_reads_back_as_written(percent in 0..=100_u8) {
        let switch = Switch::On(Percentage(percent));
        prop_assert_eq!(switch.to_string().parse(), Ok(switch));
    }
}
