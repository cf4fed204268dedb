//! The name that a certificate is for, out of certificates as they are made.

use antiphon_testcerts::Authority;
use antiphon_tls::common_name;

/// The first certificate of a file.
fn first(file: &std::path::Path) -> Vec<u8> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_file(file).expect("a certificate").to_vec()
}

#[test]
fn a_certificate_is_for_its_common_name_and_a_damaged_one_for_nobody() {
    let dir = std::env::temp_dir().join(format!("antiphon-names-{}", std::process::id()));
    let authority = Authority::new(&dir, "ca");
    for name in ["anna", "an \"odd\" näme, CN=eve", "x"] {
        let whole = first(&authority.issue(name, &["host"]).certificate);
        assert_eq!(common_name(&whole).as_deref(), Some(name));
        for cut in 0..whole.len() {
            let told = common_name(&whole[..cut]);
            assert_eq!(told, None, "a certificate that is cut off has no name");
            let mut other = whole.clone();
            other[cut] ^= 0x55;
            // Anything but a panic; what was verified is not damaged.
            let _ = common_name(&other);
        }
    }
    std::fs::remove_dir_all(&dir).expect("removed");
}
