//! A Machine's summary, or its snapshot, for its peers: the signature covers the nonce of the request, so an earlier one is not taken for this one.

use outrigger_identity::signing::{Keys, MAC_BYTES, Purpose};

use crate::peers::hop::Nonce;

/// Signs a summary in response to a request with this nonce.
pub fn sign(keys: &Keys, purpose: Purpose, nonce: Nonce, summary: &[u8]) -> Vec<u8> {
    let mut out = keys.sign(purpose, &covered(nonce, summary)).to_vec();
    out.extend_from_slice(summary);
    out
}

/// Returns the summary, if the output of [`sign`] belongs to this nonce.
pub fn verify(keys: &Keys, purpose: Purpose, nonce: Nonce, signed: &[u8]) -> Option<Vec<u8>> {
    let (mac, summary) = signed.split_at_checked(MAC_BYTES)?;
    keys.verify(purpose, &covered(nonce, summary), mac).then(|| summary.to_vec())
}

fn covered(nonce: Nonce, summary: &[u8]) -> Vec<u8> {
    [&nonce.run.to_be_bytes(), &nonce.count.to_be_bytes(), summary].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_summary_for_this_request_is_accepted() {
        let keys = Keys::parse("0123456789abcdef0123456789abcdef").unwrap().unwrap();
        let other = Keys::parse("fedcba9876543210fedcba9876543210").unwrap().unwrap();
        let nonce = Nonce { run: 1, count: 2 };
        let signed = sign(&keys, Purpose::Summary, nonce, b"{}");
        assert_eq!(verify(&keys, Purpose::Summary, nonce, &signed).as_deref(), Some(&b"{}"[..]));
        assert_eq!(verify(&keys, Purpose::Summary, Nonce { run: 1, count: 3 }, &signed), None);
        assert_eq!(verify(&other, Purpose::Summary, nonce, &signed), None);
        assert_eq!(verify(&keys, Purpose::State, nonce, &signed), None);
        for cut in 0..signed.len() {
            assert_eq!(verify(&keys, Purpose::Summary, nonce, &signed[..cut]), None, "{cut}");
        }
    }
}
