use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn keys(text: &str) -> MasterKeys {
    MasterKeys::parse(text).unwrap().unwrap()
}

#[test]
fn an_encrypted_value_decrypts_only_with_its_key() {
    let keys = keys(&format!("k1:{SECRET}"));
    let (ann, wrapped) = keys.new_data_key("u_ann").unwrap();
    let (bob, _) = keys.new_data_key("u_bob").unwrap();
    let sealed = ann.seal(b"user:ann").unwrap();
    assert_eq!(keys.unwrap_key(&wrapped).unwrap().open(&sealed).unwrap(), b"user:ann");
    assert_eq!(bob.open(&sealed), None);
    let renamed = WrappedKey { subject: "u_bob".to_owned(), ..wrapped };
    assert_eq!(keys.unwrap_key(&renamed).unwrap_err(), KeyError::Wrong("k1".to_owned()));
}

#[test]
fn a_master_key_is_rotated_without_losing_what_it_wrapped() {
    let old = keys(&format!("k1:{SECRET}"));
    let (_, wrapped) = old.new_data_key("u_ann").unwrap();
    let both = keys(&format!("k2:{OTHER},k1:{SECRET}"));
    let again = both.rewrap(&wrapped).unwrap();
    let new = keys(&format!("k2:{OTHER}"));
    assert_eq!(new.unwrap_key(&wrapped).unwrap_err(), KeyError::Unknown("k1".to_owned()));
    assert_eq!(new.unwrap_key(&again).unwrap().id(), wrapped.id);
    let names = both.pseudonyms("user:ann").unwrap();
    assert_eq!(names[1], old.pseudonym(SubjectKind::User, b"user:ann"));
    assert_eq!(names[0], new.pseudonym(SubjectKind::User, b"user:ann"));
    let wrong = keys(&format!("k1:{OTHER}"));
    assert_eq!(wrong.unwrap_key(&wrapped).unwrap_err(), KeyError::Wrong("k1".to_owned()));
}

#[test]
fn the_public_key_verifies_and_does_not_sign() {
    let keys = keys(&format!("k1:{SECRET}"));
    let signature = keys.sign(b"text");
    let public = PublicKeys::parse(&keys.public().to_string()).unwrap();
    assert_eq!(public, keys.public());
    assert_eq!(public.verify(b"text", &signature), Ok(()));
    assert_eq!(public.verify(b"texT", &signature), Err(KeyError::Wrong("k1".to_owned())));
    assert!(public.verify(b"text", &Signature { key: "k2".to_owned(), ..signature }).is_err());
}

#[test]
fn unreadable_keys_are_reported_without_being_shown() {
    for bad in [SECRET.to_owned(), "a:short".to_owned(), format!("a b:{SECRET}"), format!("a:{SECRET},a:{OTHER}")] {
        let error = MasterKeys::parse(&bad).unwrap_err().to_string();
        assert!(error.starts_with("key number") && !error.contains(SECRET), "{error}");
    }
    assert!(MasterKeys::parse(" , ").unwrap().is_none());
    assert!(!format!("{:?}", keys(&format!("k1:{SECRET}"))).contains(SECRET));
}

#[test]
fn the_app_s_part_of_a_key_makes_the_same_pseudonyms_and_is_no_master_key() {
    let keys = keys(&format!("k2:{OTHER},k1:{SECRET}"));
    let text = keys.pseudonym_key().expose();
    let part = PseudonymKey::parse(&text).unwrap().unwrap();
    for subject in ["user:ann", "key:acme", "address:192.0.2.1"] {
        let kind = SubjectKind::of(subject).unwrap();
        assert_eq!(part.pseudonym(kind, subject.as_bytes()), keys.pseudonym(kind, subject.as_bytes()));
        assert!(SubjectKind::is_pseudonym(&part.pseudonym(kind, subject.as_bytes())));
    }
    // If used as a master key, it derives a different signing key.
    let taken = MasterKeys::parse(&text).unwrap().unwrap();
    assert!(keys.public().verify(b"text", &taken.sign(b"text")).is_err());
    assert!(!format!("{part:?}").contains(&text[3..]));
    for bad in ["k1", "k1:short", SECRET] {
        assert_eq!(PseudonymKey::parse(bad).unwrap_err(), KeyError::NoPseudonymKey);
    }
    assert!(PseudonymKey::parse(" ").unwrap().is_none());
    assert!(!SubjectKind::is_pseudonym("user:ann") && !SubjectKind::is_pseudonym("u_short"));
}

#[test]
fn a_pseudonym_reveals_only_its_kind() {
    let keys = keys(&format!("k1:{SECRET}"));
    let name = keys.pseudonym(SubjectKind::Address, b"address:192.0.2.1");
    assert!(name.starts_with("a_") && name.len() == 24, "{name}");
    assert_eq!(keys.pseudonyms("address:192.0.2.1").unwrap(), [name]);
    assert_eq!(keys.pseudonyms("ann"), None);
}
