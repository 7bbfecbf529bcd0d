//! Keeps the shared object that holds this crate from being unloaded.
//!
//! A host that unloads its modules, as Apache does at each graceful restart, would take the fork handlers and leave the
//! descriptors: the next copy knows nothing of them, and a child no longer cuts them. So the object stays, from the first use
//! of anything here on. An executable cannot be unloaded; nor can what is linked into a static one.

use std::mem::MaybeUninit;

use nix::libc;

/// Once is enough; another time changes nothing. Where it fails the object can be unloaded, as any other.
pub(super) fn pin() {
    static OURS: u8 = 0;
    // SAFETY: reads a constant of the process's; 0 where the kernel does not give it.
    let program = unsafe { libc::getauxval(libc::AT_PHDR) };
    let Some(ours) = object_of((&raw const OURS).cast()) else { return };
    let is_program = object_of(program as *const libc::c_void).is_some_and(|object| object.dli_fbase == ours.dli_fbase);
    if !is_program {
        // SAFETY: names an object that is loaded, since this code is in it: nothing of it runs anew, and the handle that
        // keeps it is not needed again.
        unsafe { libc::dlopen(ours.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
    }
}

/// The loaded object that an address is in.
fn object_of(address: *const libc::c_void) -> Option<libc::Dl_info> {
    let mut object = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: takes any address, and writes the structure where the answer is not 0; read only then.
    unsafe { (libc::dladdr(address, object.as_mut_ptr()) != 0).then(|| object.assume_init()) }
}

#[cfg(test)]
mod tests {
    use super::{libc, object_of, pin};

    #[test]
    fn a_program_is_left_as_it_is() {
        pin();
        pin();
        // SAFETY: what this thread's last failed call left, if there was one.
        assert!(unsafe { libc::dlerror() }.is_null());
    }

    #[test]
    fn an_address_in_no_object_is_in_none() {
        let elsewhere = Box::new(0_u8);
        assert!(object_of((&raw const *elsewhere).cast()).is_none());
        assert!(object_of(std::ptr::null()).is_none());
    }
}
