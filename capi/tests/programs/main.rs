//! Programs in C, PHP, Lua, Python and Ruby against the installed library and real servers. `capi/tests/run` installs
//! what they need.

mod c;
mod exports;
mod host;
mod scripts;
