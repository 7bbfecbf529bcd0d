//! Programs in C, PHP and Lua against the installed library and real servers. `capi/tests/run` installs what they need.

mod c;
mod exports;
mod host;
mod scripts;
