//! `allow` and `deny` of the listeners and of routes.

use outrigger_policy::flags::{Mode, Network};
use outrigger_policy::networks::{AddressList, Networks};

use crate::complaints::Builder;
use crate::sections::routes::Route;
use crate::tree::Step;
use crate::units::Text;

/// The longest list.
const MOST: usize = 1000;

impl Builder<'_> {
    /// Checks the lists of the section at `path`; `None` if both are empty.
    pub fn address_list(
        &mut self,
        path: &[Step<'_>],
        allow: &[Text<Network>],
        deny: &[Text<Network>],
    ) -> Option<AddressList> {
        for (key, list) in [("allow", allow), ("deny", deny)] {
            if list.len() > MOST {
                let message = format!("`{key}` has {} entries, more than {MOST}", list.len());
                self.complain(&[path, &[Step::Key(key)]].concat(), message, "name larger networks");
            }
        }
        let networks = |list: &[Text<Network>]| list.iter().map(|network| network.0).collect::<Networks>();
        let list = AddressList::new(networks(allow), networks(deny));
        (!list.is_empty()).then_some(list)
    }

    /// Checks the lists of a route.
    pub fn route_addresses(&mut self, written: &Route, index: usize) -> Option<(AddressList, Mode)> {
        let path = [Step::Key("routes"), Step::Index(index)];
        let list = self.address_list(&path, &written.allow, &written.deny)?;
        let mode = written.address_mode.into();
        (mode != Mode::Off).then_some((list, mode))
    }
}
