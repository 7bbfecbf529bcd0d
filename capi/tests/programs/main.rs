//! Programs in C, PHP, Lua, Python and Ruby with the installed library and real servers. `capi/tests/run` installs the
//! packages that they need.

mod c;
mod exports;
mod host;
mod scripts;
