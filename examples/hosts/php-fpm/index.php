<?php

// /redis/KEY/VALUE stores a value, reads it back, and returns the process id and the value.
[, $store, $key, $value] = explode('/', $_SERVER['REQUEST_URI']);
$cache = new PreforkCache(getenv(strtoupper($store) . '_URL'), $store);
$cache->set($key, $value, 60);
header('Content-Type: text/plain');
echo getmypid(), ' ', $cache->get($key);
