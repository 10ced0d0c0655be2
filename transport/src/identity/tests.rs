use std::os::unix::fs::PermissionsExt;

use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;

use super::*;
use crate::testing::peer;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// A folder for identities, and one that was made in it.
fn made(name: &str) -> (TempDir, PathBuf, Identity) {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("state/identity");
    let identity = Identity::create(&dir, &peer(name)).unwrap();
    (root, dir, identity)
}

#[test]
fn created_identity_is_private_and_loads_as_the_same() {
    let (_root, dir, created) = made("pair");
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
    let loaded = Identity::load(&dir).unwrap();
    assert_eq!(loaded.name(), &peer("pair"));
    assert_eq!(loaded.fingerprint(), created.fingerprint());
    assert_eq!(loaded.derived_secret("reset"), created.derived_secret("reset"));
    assert_ne!(loaded.derived_secret("reset"), created.derived_secret("token"));
    let files = fs::read_dir(dir.parent().unwrap()).unwrap().count();
    assert_eq!(files, 1, "nothing is left over beside it");
}

#[test]
fn identities_differ() {
    let ((_a, _, one), (_b, _, other)) = (made("pair"), made("pair"));
    assert_ne!(one.fingerprint(), other.fingerprint());
    assert_ne!(one.derived_secret("reset"), other.derived_secret("reset"));
}

#[test]
fn existing_identity_is_never_overwritten() {
    let (_root, dir, created) = made("pair");
    let error = Identity::create(&dir, &peer("other")).unwrap_err();
    assert!(matches!(error, IdentityError::Exists { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains(&dir.display().to_string()), "{error}");
    assert_eq!(Identity::load(&dir).unwrap().fingerprint(), created.fingerprint());
}

#[test]
fn folder_with_other_files_is_left_alone_and_an_empty_one_is_used() {
    let root = TempDir::new().unwrap();
    let (used, empty) = (root.path().join("used"), root.path().join("empty"));
    fs::create_dir(&used).unwrap();
    fs::write(used.join("notes"), "mine").unwrap();
    assert!(matches!(Identity::create(&used, &peer("pair")), Err(IdentityError::Exists { .. })));
    assert_eq!(fs::read(used.join("notes")).unwrap(), b"mine");
    fs::create_dir(&empty).unwrap();
    Identity::create(&empty, &peer("pair")).unwrap();
    assert_eq!(mode(&empty), 0o700, "whatever mode the empty folder had");
}

#[test]
fn key_that_others_can_read_is_refused() {
    let (_root, dir, _) = made("pair");
    let key = dir.join(KEY_FILE);
    for exposed in [0o640, 0o604, 0o620, 0o601, 0o666] {
        fs::set_permissions(&key, fs::Permissions::from_mode(exposed)).unwrap();
        let error = Identity::load(&dir).unwrap_err();
        assert!(matches!(&error, IdentityError::Exposed { path, mode } if *path == key && *mode == exposed));
        let text = error.to_string();
        assert!(text.contains(&format!("{exposed:04o}")) && text.contains("chmod 0600"), "{text}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    for private in [0o600, 0o400] {
        fs::set_permissions(&key, fs::Permissions::from_mode(private)).unwrap();
        Identity::load(&dir).unwrap();
    }
}

#[test]
fn missing_identity_tells_how_to_make_one() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("identity");
    let error = Identity::load(&dir).unwrap_err();
    assert!(matches!(error, IdentityError::Missing { .. }), "{error:?}");
    let command = format!("thirdsite identity new --dir {}", dir.display());
    assert!(error.to_string().contains(&command), "{error}");
}

/// Replaces a file of a fresh identity, and expects an error that names it and says that it is damaged.
fn check_damage(file: &str, damage: impl FnOnce(&Path)) {
    let (_root, dir, _) = made("pair");
    let path = dir.join(file);
    damage(&path);
    let error = Identity::load(&dir).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
}

#[test]
fn damaged_files_are_named() {
    for file in [KEY_FILE, CERTIFICATE_FILE] {
        check_damage(file, |path| fs::write(path, "").unwrap());
        check_damage(file, |path| fs::write(path, [0xff; 100]).unwrap());
        check_damage(file, |path| {
            let text = fs::read_to_string(path).unwrap();
            fs::write(path, &text[..text.len() / 2]).unwrap();
        });
    }
    check_damage(CERTIFICATE_FILE, |path| fs::remove_file(path).unwrap());
}

#[test]
fn certificate_of_another_key_is_refused() {
    let ((_a, dir, _), (_b, other, _)) = (made("pair"), made("pair"));
    fs::copy(other.join(CERTIFICATE_FILE), dir.join(CERTIFICATE_FILE)).unwrap();
    let error = Identity::load(&dir).unwrap_err();
    assert!(matches!(&error, IdentityError::Mismatch { dir: told } if *told == dir), "{error:?}");
}

#[test]
fn keys_of_other_kinds_are_refused() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
    assert!(parse_certificate(certificate.der()).is_none());
    check_damage(CERTIFICATE_FILE, |path| fs::write(path, certificate.pem()).unwrap());
    check_damage(KEY_FILE, |path| fs::write(path, key.serialize_pem()).unwrap());
}

#[test]
fn certificate_is_known_by_its_key_and_must_be_whole() {
    let (_root, _, identity) = made("pair");
    let der = identity.certificate();
    let parsed = parse_certificate(&der).unwrap();
    assert_eq!(parsed.fingerprint, identity.fingerprint());
    assert_eq!(parsed.public_key, identity.public_key());
    let longer = CertificateDer::from([&der[..], &[0]].concat());
    assert!(parse_certificate(&longer).is_none());
    for length in 0..der.len() {
        assert!(
            parse_certificate(&CertificateDer::from(der[..length].to_vec())).is_none(),
            "cut to {length}"
        );
    }
}

#[test]
fn signature_holds_for_its_bytes_and_key_only() {
    let ((_a, _, one), (_b, _, other)) = (made("pair"), made("pair"));
    let signature = one.sign(b"everything is durable");
    assert!(one.public_key().verify(b"everything is durable", &signature));
    assert!(!one.public_key().verify(b"everything is durably", &signature));
    assert!(!other.public_key().verify(b"everything is durable", &signature));
}

#[test]
fn printing_an_identity_does_not_show_its_key() {
    let (_root, dir, identity) = made("pair");
    let printed = format!("{identity:?}");
    assert!(printed.contains("pair") && printed.contains(&identity.fingerprint().to_string()), "{printed}");
    let pem = fs::read_to_string(dir.join(KEY_FILE)).unwrap();
    let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::Pkcs8(identity.private_key()) else { unreachable!() };
    let bytes = format!("{:?}", key.secret_pkcs8_der());
    assert!(!pem.lines().any(|line| printed.contains(line)) && !printed.contains(&bytes[1..20]), "{printed}");
}

#[test]
fn fingerprint_is_read_as_it_is_printed() {
    let (_root, _, identity) = made("pair");
    let fingerprint = identity.fingerprint();
    let text = fingerprint.to_string();
    assert_eq!((text.len(), text.to_lowercase()), (64, text.clone()));
    let pairs: Vec<&str> = (0..32).map(|index| &text[index * 2..index * 2 + 2]).collect();
    for form in [text.clone(), text.to_uppercase(), pairs.join(":"), pairs.join(":").to_uppercase()] {
        assert_eq!(form.parse::<Fingerprint>().unwrap(), fingerprint, "{form}");
    }
}

#[test]
fn malformed_fingerprints_are_refused_with_the_rule() {
    let digits = "0123456789abcdef".repeat(4);
    let pairs = vec!["ab"; 32].join(":");
    let mut swapped = pairs.clone();
    swapped.replace_range(2..4, "a:");
    for text in [
        String::new(),
        digits[1..].to_owned(),
        format!("{digits}0"),
        format!(" {}", &digits[1..]),
        digits.replace('f', "g"),
        digits.replacen("01", "+1", 1),
        digits.replacen("01", "é", 1),
        pairs.replace(':', "-"),
        pairs.replacen(':', "0", 1),
        swapped,
        format!("{pairs}:"),
        format!("SHA256:{digits}"),
    ] {
        let error = text.parse::<Fingerprint>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let message = error.to_string();
        assert!(message.contains(&text) && message.contains("64 hexadecimal digits"), "{message}");
        assert!(message.contains("thirdsite identity show"), "{message}");
    }
}
