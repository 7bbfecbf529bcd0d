<?php

// In the master, before it forks: here it makes its own connections.
FFI::load(getenv('PREFIX') . '/include/prefork_cache.ffi.h');
require __DIR__ . '/Cache.php';

foreach (['redis', 'memcached'] as $name) {
    Cache::named($name)->set('motd', 'hello', 60);
}
