//! Prevents the shared object that links this crate from being unloaded.
//!
//! A host that unloads its modules, as Apache does at each graceful restart, would remove the fork handlers but leave
//! the descriptors open. The next copy would not know them, and a child would no longer cut them. So the object stays
//! loaded from the first use of the crate on. An executable cannot be unloaded, nor can a library linked into a static
//! one.

use std::mem::MaybeUninit;

use nix::libc;

/// Pins the object. Repeated calls change nothing. If it fails, the object can be unloaded like any other.
pub(super) fn pin() {
    static OURS: u8 = 0;
    // SAFETY: reads a constant of the process; 0 if the kernel does not provide it.
    let program = unsafe { libc::getauxval(libc::AT_PHDR) };
    let Some(ours) = object_of((&raw const OURS).cast()) else { return };
    let is_program = object_of(program as *const libc::c_void).is_some_and(|object| object.dli_fbase == ours.dli_fbase);
    if !is_program {
        // SAFETY: names an object that is loaded, since it contains this code. No initialiser runs again, and the
        // returned handle is not needed.
        unsafe { libc::dlopen(ours.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
    }
}

/// Returns the loaded object that contains an address.
fn object_of(address: *const libc::c_void) -> Option<libc::Dl_info> {
    let mut object = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: accepts any address, and writes the structure if it returns other than 0; it is read only then.
    unsafe { (libc::dladdr(address, object.as_mut_ptr()) != 0).then(|| object.assume_init()) }
}

#[cfg(test)]
mod tests {
    use super::{libc, object_of, pin};

    #[test]
    fn pinning_a_program_does_nothing() {
        pin();
        pin();
        // SAFETY: reads the error of this thread's last failed call, if there was one.
        assert!(unsafe { libc::dlerror() }.is_null());
    }

    #[test]
    fn an_address_outside_all_objects_has_no_object() {
        let elsewhere = Box::new(0_u8);
        assert!(object_of((&raw const *elsewhere).cast()).is_none());
        assert!(object_of(std::ptr::null()).is_none());
    }
}
