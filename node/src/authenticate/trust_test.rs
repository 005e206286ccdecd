use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

use super::*;
use crate::authenticate::test_certificates::{DOCUMENTED_CLIENT, Made, authority_params, day, params};

fn list(certificates: &[&Made]) -> Vec<u8> {
    certificates.iter().map(|made| made.pem.as_str()).collect::<String>().into_bytes()
}

fn trust(authorized: &[&Made], authorities: &[&Made]) -> Arc<Trust> {
    let path = Path::new("test.crt");
    let authorized = if authorized.is_empty() {
        CertificateList::default()
    } else {
        CertificateList::authorized(path, &list(authorized)).unwrap()
    };
    let authorities = if authorities.is_empty() {
        CertificateList::default()
    } else {
        CertificateList::authorities(path, &list(authorities)).unwrap()
    };
    Trust::new(Arc::new(authorized), Arc::new(authorities))
}

fn judge(trust: &Trust, chain: &[&Made]) -> Result<Vouched, Distrust> {
    judge_in(trust, chain, 0)
}

fn judge_in(trust: &Trust, chain: &[&Made], days: u64) -> Result<Vouched, Distrust> {
    let now = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + days * 24 * 3600));
    let (leaf, intermediates) = chain.split_first().unwrap();
    let intermediates: Vec<_> = intermediates.iter().map(|made| made.der.clone()).collect();
    trust.judge(&Parsed::read(&leaf.der).unwrap(), &intermediates, now)
}

#[test]
fn a_listed_certificate_is_accepted_whatever_its_form() {
    let (a, b) = (Made::documented_shape("client"), Made::self_signed(&params("client")));
    let trust = trust(&[&DOCUMENTED_CLIENT, &a, &b], &[]);
    for listed in [&*DOCUMENTED_CLIENT, &a, &b] {
        assert_eq!(judge(&trust, &[listed]), Ok(Vouched::Listed));
    }
}

#[test]
fn a_certificate_of_the_same_name_or_key_is_not_the_listed_one() {
    let key = KeyPair::generate().unwrap();
    let listed = Made::self_signed_by(&authority_params("client"), &key);
    let trust = trust(&[&listed], &[]);
    assert_eq!(judge(&trust, &[&Made::documented_shape("client")]), Err(Distrust::Unknown));
    let mut renewed = authority_params("client");
    renewed.not_after = day(365).into();
    assert_eq!(judge(&trust, &[&Made::self_signed_by(&renewed, &key)]), Err(Distrust::Unknown));
}

#[test]
fn an_empty_trust_accepts_nobody() {
    let trust = trust(&[], &[]);
    assert_eq!(judge(&trust, &[&Made::documented_shape("client")]), Err(Distrust::Unknown));
    assert_eq!(judge(&trust, &[&Made::documented_shape("ca").issue(&params("client"))]), Err(Distrust::Unknown));
}

#[test]
fn who_vouches_is_told_apart() {
    let (listed, authority) = (Made::documented_shape("listed"), Made::documented_shape("authority"));
    let trust = trust(&[&listed], &[&authority]);
    assert_eq!(judge(&trust, &[&listed.issue(&params("a"))]), Ok(Vouched::ByListed));
    assert_eq!(judge(&trust, &[&authority.issue(&params("b"))]), Ok(Vouched::Authority));
    let rsa = self::trust(&[&DOCUMENTED_CLIENT], &[]);
    assert_eq!(judge(&rsa, &[&DOCUMENTED_CLIENT.issue(&params("c"))]), Ok(Vouched::ByListed));
}

#[test]
fn an_authority_vouches_through_intermediates_that_are_shown() {
    let root = Made::documented_shape("root");
    let intermediate = root.issue(&authority_params("intermediate"));
    let leaf = intermediate.issue(&params("client"));
    let trust = trust(&[], &[&root]);
    assert_eq!(judge(&trust, &[&leaf, &intermediate]), Ok(Vouched::Authority));
    assert_eq!(judge(&trust, &[&leaf]), Err(Distrust::Unknown));
}

#[test]
fn a_listed_certificate_that_may_not_issue_others_does_not_vouch_for_them() {
    let mut plain = params("plain");
    plain.is_ca = IsCa::ExplicitNoCa;
    let mut signs_nothing = authority_params("signs nothing");
    signs_nothing.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    for listed in [params("bare"), plain, signs_nothing] {
        let listed = Made::self_signed(&listed);
        let trust = trust(&[&listed], &[]);
        assert_eq!(judge(&trust, &[&listed]), Ok(Vouched::Listed));
        assert_eq!(judge(&trust, &[&listed.issue(&params("client"))]), Err(Distrust::Unknown));
    }
}

#[test]
fn an_authority_is_no_client_unless_it_is_listed() {
    let root = Made::documented_shape("root");
    let intermediate = root.issue(&authority_params("intermediate"));
    assert_eq!(judge(&trust(&[], &[&root]), &[&root]), Err(Distrust::Unknown));
    assert_eq!(judge(&trust(&[], &[&root]), &[&intermediate]), Err(Distrust::IsAuthority));
    assert_eq!(judge(&trust(&[&intermediate], &[&root]), &[&intermediate]), Ok(Vouched::Listed));
}

#[test]
fn a_server_certificate_is_no_client_certificate() {
    let root = Made::documented_shape("root");
    let trust = trust(&[], &[&root]);
    let mut server = params("server");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert_eq!(judge(&trust, &[&root.issue(&server)]), Err(Distrust::Purpose));
    server.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    assert_eq!(judge(&trust, &[&root.issue(&server)]), Ok(Vouched::Authority));
}

#[test]
fn a_listed_certificate_counts_within_its_period_only() {
    let mut late = authority_params("late");
    late.not_before = day(10).into();
    let (now, late) = (Made::documented_shape("now"), Made::self_signed(&late));
    let trust = trust(&[&now, &late], &[]);
    assert_eq!(judge_in(&trust, &[&now], 29), Ok(Vouched::Listed));
    let expired = judge_in(&trust, &[&now], 31).unwrap_err();
    assert!(matches!(&expired, Distrust::Expired { since } if since.contains("20")), "{expired:?}");
    assert!(matches!(judge(&trust, &[&late]), Err(Distrust::NotYetValid { .. })));
    assert_eq!(judge_in(&trust, &[&late], 11), Ok(Vouched::Listed));
}

#[test]
fn nobody_vouches_outside_their_own_period() {
    let issuer = Made::documented_shape("issuer");
    let mut long = params("client");
    long.not_after = day(365).into();
    let client = issuer.issue(&long);
    for trust in [trust(&[&issuer], &[]), trust(&[], &[&issuer])] {
        assert!(judge_in(&trust, &[&client], 29).is_ok());
        let late = judge_in(&trust, &[&client], 31).unwrap_err();
        assert!(
            matches!(&late, Distrust::IssuerOutsidePeriod { issuer } if issuer.starts_with("CN=issuer")),
            "{late:?}"
        );
    }
}

#[test]
fn one_expired_issuer_does_not_take_the_others_along() {
    let mut over = authority_params("over");
    over.not_after = day(-1).into();
    over.not_before = day(-2).into();
    let (over, good) = (Made::self_signed(&over), Made::documented_shape("good"));
    let trust = trust(&[&over, &good], &[]);
    assert_eq!(judge(&trust, &[&good.issue(&params("client"))]), Ok(Vouched::ByListed));
}

#[test]
fn a_forged_signature_of_a_known_name_is_refused() {
    let (real, forged) = (Made::documented_shape("issuer"), Made::documented_shape("issuer"));
    let trust = trust(&[&real], &[&real]);
    let client = forged.issue(&params("client"));
    assert!(judge(&trust, &[&client]).is_err());
    assert!(judge(&trust, &[&client, &forged]).is_err());
}

#[test]
fn name_constraints_of_an_issuer_bind() {
    use rcgen::{GeneralSubtree, NameConstraints};
    let mut constrained = authority_params("team");
    let permitted_subtrees = vec![GeneralSubtree::DnsName("team.example".to_owned())];
    constrained.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
    let issuer = Made::self_signed(&constrained);
    let trust = trust(&[&issuer], &[]);
    let named = |name: &str| issuer.issue(&CertificateParams::new([name.to_owned()]).unwrap());
    assert_eq!(judge(&trust, &[&named("ci.team.example")]), Ok(Vouched::ByListed));
    assert!(judge(&trust, &[&named("ci.other.example")]).is_err());
}

#[test]
fn an_old_openssl_certificate_without_extensions_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Made::documented_shape("issuer");
    std::fs::write(dir.path().join("ca.crt"), &issuer.pem).unwrap();
    std::fs::write(dir.path().join("ca.key"), &issuer.key_pem).unwrap();
    let script = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=old -keyout k -out csr \
                  && openssl x509 -req -in csr -CA ca.crt -CAkey ca.key -CAcreateserial -out old.crt";
    let output = std::process::Command::new("sh").args(["-ec", script]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = dir.path().join("old.crt");
    let old = pem::certificates(&path, &pem::read(&path).unwrap()).unwrap().remove(0);
    // Newer openssl makes version 3 with the same command, and that is accepted.
    let expected = if old.is_version_1 { Err(Distrust::Version1) } else { Ok(Vouched::ByListed) };
    assert_eq!(trust(&[&issuer], &[]).judge(&old, &[], UnixTime::now()), expected);
}

#[test]
fn a_client_certificate_among_the_authorities_is_an_error() {
    let (ca, client) = (Made::documented_shape("ca"), Made::self_signed(&params("client")));
    let error = CertificateList::authorities(Path::new("ca.crt"), &list(&[&ca, &client])).unwrap_err();
    assert!(error.to_string().starts_with("block 2 of ca.crt (CN=client sha256:"), "{error}");
}

#[test]
fn a_verdict_is_remembered_by_its_trust_and_asked_again_of_another() {
    let (a, b) = (Made::documented_shape("a"), Made::documented_shape("b"));
    let both = trust(&[&a, &b], &[]);
    let admit = |trust: &Trust, made: &Made| trust.admit(Parsed::read(&made.der).unwrap(), &[], Vouched::Listed);
    let (first, second) = (admit(&both, &a), admit(&both, &b));
    let now = UnixTime::now();
    assert!(both.still_admits(&first, now) && both.still_admits(&second, now));
    let one = trust(&[&a], &[]);
    assert!(one.still_admits(&first, now));
    assert!(!one.still_admits(&second, now));
    assert!(!one.still_admits(&second, now), "a refusal is not forgotten either");
    assert!(both.still_admits(&second, now));
}

#[test]
fn an_expired_certificate_is_not_admitted_any_longer_by_the_same_trust() {
    let a = Made::documented_shape("a");
    let trust = trust(&[&a], &[]);
    let identity = trust.admit(Parsed::read(&a.der).unwrap(), &[], Vouched::Listed);
    let later = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + 31 * 24 * 3600));
    assert!(trust.still_admits(&identity, UnixTime::now()));
    assert!(!trust.still_admits(&identity, later));
}

#[test]
fn somebody_for_whom_another_vouches_now_has_to_come_again() {
    let issuer = Made::documented_shape("issuer");
    let client = issuer.issue(&params("client"));
    let by_listed = trust(&[&issuer], &[]);
    let identity = by_listed.admit(Parsed::read(&client.der).unwrap(), &[], Vouched::ByListed);
    assert!(by_listed.still_admits(&identity, UnixTime::now()));
    assert!(!trust(&[], &[&issuer]).still_admits(&identity, UnixTime::now()));
}

#[test]
fn nobody_in_particular_is_not_admitted_where_certificates_are_asked_for() {
    assert!(!trust(&[], &[]).still_admits(&Identity::anonymous(), UnixTime::now()));
}

#[test]
fn a_broken_list_keeps_its_own_part_and_lets_the_other_change() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, ca) = (Made::documented_shape("a"), Made::documented_shape("b"), Made::documented_shape("ca"));
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("authorized.crt"), &a.pem).unwrap();
    std::fs::write(at("ca.crt"), &b.pem).unwrap();
    let files = TrustFiles { authorized: Some(at("authorized.crt")), authorities: Some(at("ca.crt")) };
    let mut watched = WatchedTrust::load(&files).unwrap();
    std::fs::write(at("authorized.crt"), "no certificate").unwrap();
    std::fs::write(at("ca.crt"), &ca.pem).unwrap();
    let mut error = None;
    let trust = watched.poll(&mut error).unwrap();
    assert!(matches!(error, Some(TlsError::NoCertificate { .. })), "{error:?}");
    assert_eq!(judge(&trust, &[&a]), Ok(Vouched::Listed));
    assert_eq!(judge(&trust, &[&ca.issue(&params("client"))]), Ok(Vouched::Authority));
    assert_eq!(judge(&trust, &[&b.issue(&params("client"))]), Err(Distrust::Unknown));
    error = None;
    assert!(watched.poll(&mut error).is_none() && error.is_none());
}
