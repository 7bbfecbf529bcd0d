<?php

declare(strict_types=1);

/**
 * A cache that is safe to use across fork(), for PHP with FFI: Redis, Memcached and in-memory stores.
 *
 *     require 'prefork_cache.php';
 *     $cache = new PreforkCache('redis://127.0.0.1:6379');
 *     $cache->set('motd', 'hello', 60);
 *     $page = $cache->fetch('page', 60, fn () => render());
 *
 * Keys and values are strings. Times are in seconds and may be fractions; null means that an entry never expires.
 * Failures throw PreforkCacheException. A loader may throw: no frame of the library is on the stack while it runs. No
 * hook is needed after a fork.
 *
 * On the command line, enable FFI with `ffi.enable=1`. In FPM, with `ffi.enable=preload`, preload both this file and
 * the declarations: `opcache.preload=/path/prefork_cache.php` and `ffi.preload=/path/prefork_cache.ffi.h`. If the master
 * does not run as root, `opcache.preload` may instead name your own script, which requires this file and calls
 * PreforkCache::load(). Each worker then makes its own connections.
 *
 * Calls that wait return to PHP every 0.1 s, so that signals are handled if pcntl_async_signals(true) is set.
 */
final class PreforkCache
{
    private const API = 1;
    private const NEVER = -1;
    private const OK = 0;
    private const MISS = 1;
    private const CLAIM = 3;
    private const AGAIN = 4;

    private const INSTALLED = [
        __DIR__ . '/../../include/prefork_cache.ffi.h',
        '/usr/local/include/prefork_cache.ffi.h',
        '/usr/include/prefork_cache.ffi.h',
    ];

    private static ?\FFI $library = null;

    private \FFI\CData $handle;

    /** Opens a cache, or uses the one that is open under this name in this process. */
    public function __construct(string $url, string $name = 'default', ?string $namespace = null)
    {
        $library = self::library();
        $handle = $library->new('pfc_cache *');
        $length = $namespace === null ? 0 : strlen($namespace);
        $opened = \FFI::addr($handle);
        self::checked($library->pfc_open($name, strlen($name), $url, strlen($url), $namespace, $length, $opened));
        $this->handle = $handle;
    }

    /**
     * Loads the library. Only opcache.preload has to call this; otherwise the first use loads it. The declarations are
     * read from the path in the environment variable PREFORK_CACHE_FFI_H, or from where they are installed.
     */
    public static function load(?string $header = null): \FFI
    {
        $paths = array_filter([$header, getenv('PREFORK_CACHE_FFI_H') ?: null, ...self::INSTALLED]);
        foreach ($paths as $path) {
            if (is_file($path)) {
                return \FFI::load($path);
            }
        }
        $tried = implode(', ', $paths);
        throw new \RuntimeException("prefork_cache.ffi.h is not in $tried: set PREFORK_CACHE_FFI_H");
    }

    private static function library(): \FFI
    {
        return self::$library ??= self::preloadedOrLoaded();
    }

    private static function preloadedOrLoaded(): \FFI
    {
        try {
            $library = \FFI::scope('prefork_cache');
        } catch (\FFI\Exception) {
            $library = self::load();
        }
        if ($library->pfc_abi_version() < self::API) {
            throw new \RuntimeException('libprefork_cache is older than prefork_cache.php');
        }
        return $library;
    }

    /** Returns the string under a key, or null. */
    public function get(string $key): ?string
    {
        $library = self::library();
        $value = $library->new('pfc_value');
        self::finish(fn ($call) => $library->pfc_get($this->handle, $key, strlen($key), \FFI::addr($value), $call));
        return self::take($value);
    }

    /**
     * Returns the existing entries by key.
     *
     * @param list<string> $keys
     * @return array<string, string>
     */
    public function getMany(array $keys): array
    {
        $found = [];
        if ($keys === []) {
            return $found;
        }
        $library = self::library();
        $keys = array_values($keys);
        [$array, $buffers] = self::keys($keys);
        $count = count($keys);
        $values = $library->new("pfc_value[$count]");
        try {
            self::finish(fn ($call) => $library->pfc_get_many($this->handle, $array, $count, $values, null, $call));
        } finally {
            foreach ($keys as $index => $key) {
                $text = self::take($values[$index]);
                if ($text !== null) {
                    $found[$key] = $text;
                }
            }
        }
        return $found;
    }

    /** Stores a string, whether or not there is an entry. */
    public function set(string $key, string $value, int|float|null $seconds = null): void
    {
        $this->store('pfc_set', $key, $value, $seconds);
    }

    /** Stores a string if there is no entry. Returns whether it was stored. */
    public function add(string $key, string $value, int|float|null $seconds = null): bool
    {
        return $this->store('pfc_add', $key, $value, $seconds);
    }

    /** Stores a string if there is an entry. Returns whether it was stored. */
    public function replace(string $key, string $value, int|float|null $seconds = null): bool
    {
        return $this->store('pfc_replace', $key, $value, $seconds);
    }

    private function store(string $verb, string $key, string $value, int|float|null $seconds): bool
    {
        $library = self::library();
        $ttl = self::milliseconds($seconds);
        $put = fn ($call) => $library->$verb($this->handle, $key, strlen($key), $value, strlen($value), $ttl, $call);
        return self::finish($put) === self::OK;
    }

    /** Removes an entry. Returns whether there was one. */
    public function delete(string $key): bool
    {
        $library = self::library();
        return self::finish(fn ($call) => $library->pfc_delete($this->handle, $key, strlen($key), $call)) === self::OK;
    }

    /**
     * Removes many entries. Returns how many there were.
     *
     * @param list<string> $keys
     */
    public function deleteMany(array $keys): int
    {
        if ($keys === []) {
            return 0;
        }
        $library = self::library();
        [$array, $buffers] = self::keys(array_values($keys));
        $count = count($keys);
        $statuses = $library->new("pfc_status[$count]");
        self::finish(fn ($call) => $library->pfc_delete_many($this->handle, $array, $count, $statuses, $call));
        $removed = 0;
        for ($index = 0; $index < $count; $index++) {
            $removed += $statuses[$index] === self::OK ? 1 : 0;
        }
        return $removed;
    }

    /** Returns whether there is an entry. */
    public function exists(string $key): bool
    {
        $library = self::library();
        return self::finish(fn ($call) => $library->pfc_exists($this->handle, $key, strlen($key), $call)) === self::OK;
    }

    /** Sets the time to live of an entry. Returns whether there is one. */
    public function touch(string $key, int|float|null $seconds): bool
    {
        $library = self::library();
        $ttl = self::milliseconds($seconds);
        $touch = fn ($call) => $library->pfc_touch($this->handle, $key, strlen($key), $ttl, $call);
        return self::finish($touch) === self::OK;
    }

    /** Returns the seconds until an entry expires: INF if it never does, null if there is no entry. */
    public function expiresIn(string $key): ?float
    {
        $library = self::library();
        $left = $library->new('int64_t');
        $ask = fn ($call) => $library->pfc_expires_in($this->handle, $key, strlen($key), \FFI::addr($left), $call);
        if (self::finish($ask) === self::MISS) {
            return null;
        }
        return $left->cdata === self::NEVER ? INF : $left->cdata / 1000;
    }

    /** Adds to a counter and returns the sum. A new counter expires after `$seconds`. */
    public function increment(string $key, int $by = 1, int|float|null $seconds = null): int
    {
        $library = self::library();
        $ttl = self::milliseconds($seconds);
        $count = $library->new('int64_t');
        $result = \FFI::addr($count);
        $add = fn ($call) => $library->pfc_increment($this->handle, $key, strlen($key), $by, $ttl, $result, $call);
        self::finish($add);
        return $count->cdata;
    }

    /** Returns the number in a counter, or null. */
    public function counter(string $key): ?int
    {
        $library = self::library();
        $count = $library->new('int64_t');
        $ask = fn ($call) => $library->pfc_counter($this->handle, $key, strlen($key), \FFI::addr($count), $call);
        return self::finish($ask) === self::MISS ? null : $count->cdata;
    }

    /** Removes all entries of the namespace; for a cache without a namespace, all entries of the store. */
    public function clear(): void
    {
        $library = self::library();
        self::finish(fn ($call) => $library->pfc_clear($this->handle, $call));
    }

    /**
     * Returns the string under a key, or calls `$load`, stores its string and returns that. One caller among all
     * processes on the server loads, and the others wait for it. An exception of `$load` is thrown, unless there is a
     * stale string.
     *
     * @param callable(string): string $load
     * @param int|float $stale         For how many seconds after that a stale string is returned while it is reloaded.
     * @param int|float $refreshAhead  How many seconds before its end one caller reloads a string.
     * @param float $jitter            The fraction by which its time is shortened at random, at most.
     * @param int|float $loadTimeout   How many seconds a load may take before others stop waiting for it.
     */
    public function fetch(
        string $key,
        int|float|null $seconds,
        callable $load,
        int|float $stale = 0,
        int|float $refreshAhead = 0,
        float $jitter = 0.0,
        int|float $loadTimeout = 60,
    ): string {
        $library = self::library();
        $expiry = $library->new('pfc_expiry');
        $expiry->ttl_ms = self::milliseconds($seconds);
        $expiry->stale_ms = $stale > 0 ? self::milliseconds($stale) : 0;
        $expiry->refresh_ahead_ms = $refreshAhead > 0 ? self::milliseconds($refreshAhead) : 0;
        $expiry->jitter = $jitter;
        $timeout = self::milliseconds($loadTimeout);
        $value = $library->new('pfc_value');
        $claim = $library->new('pfc_claim *');
        [$found, $claimed] = [\FFI::addr($value), \FFI::addr($claim)];
        $length = strlen($key);
        $begin = fn ($call) => $library->pfc_fetch_begin($this->handle, $key, $length, $timeout, $found, $claimed, $call);
        $status = self::finish($begin);
        $old = self::take($value);
        if ($status !== self::CLAIM) {
            return $old;
        }
        try {
            $loaded = $load($key);
            if (!is_string($loaded)) {
                throw new \TypeError('a loader returned ' . get_debug_type($loaded) . ', not a string');
            }
            $length = strlen($loaded);
            $addr = \FFI::addr($expiry);
            self::finish(fn ($call) => $library->pfc_fetch_complete($claim, $loaded, $length, $addr, $call));
            $claim = null;
        } catch (\Exception $thrown) {
            if ($old === null) {
                throw $thrown;
            }
            return $old;
        } finally {
            if ($claim !== null) {
                self::finish(fn ($call) => $library->pfc_fetch_fail($claim, null, $call));
            }
        }
        return $loaded;
    }

    /**
     * Returns the statistics of the cache in this process.
     *
     * @return array<string, mixed>
     */
    public function stats(): array
    {
        $value = self::library()->new('pfc_value');
        self::checked(self::library()->pfc_stats($this->handle, \FFI::addr($value)));
        return json_decode(self::take($value), true, flags: JSON_THROW_ON_ERROR);
    }

    /** Returns the statistics of all caches of this process, in the text format of Prometheus. */
    public static function prometheus(): string
    {
        $value = self::library()->new('pfc_value');
        self::checked(self::library()->pfc_prometheus(\FFI::addr($value)));
        return self::take($value);
    }

    /**
     * Returns the failures that no call has thrown, and clears the list.
     *
     * @return array{dropped: int, errors: list<array<string, mixed>>}
     */
    public static function takeErrors(): array
    {
        $value = self::library()->new('pfc_value');
        self::checked(self::library()->pfc_take_errors(\FFI::addr($value)));
        $json = self::take($value) ?? '{"dropped": 0, "errors": []}';
        return json_decode($json, true, flags: JSON_THROW_ON_ERROR);
    }

    /** Refreshes the stores after a fork, now instead of at their first use. Optional. Returns a line for a log. */
    public static function afterFork(): string
    {
        $value = self::library()->new('pfc_value');
        self::checked(self::library()->pfc_after_fork(\FFI::addr($value)));
        return self::take($value);
    }

    /** Returns the generation of this process: 1, and one more in each forked child. */
    public static function generation(): int
    {
        return self::library()->pfc_generation();
    }

    /** Repeats a call until it is finished. */
    private static function finish(callable $make): int
    {
        $call = self::library()->new('pfc_call *');
        $unfinished = \FFI::addr($call);
        try {
            do {
                // PHP handles its signals between two calls.
                $status = $make($unfinished);
            } while ($status === self::AGAIN);
        } finally {
            if (!\FFI::isNull($call)) {
                self::library()->pfc_call_cancel($call);
            }
        }
        return self::checked($status);
    }

    /** Returns the status; throws if it is an error. */
    private static function checked(int $status): int
    {
        if ($status < 0) {
            $library = self::library();
            throw new PreforkCacheException(
                $library->pfc_status_name($status),
                $library->pfc_error_message(),
                $status,
                $library->pfc_error_is_transient() === 1,
            );
        }
        return $status;
    }

    /** Returns the string of a value, or null, and frees the value. */
    private static function take(\FFI\CData $value): ?string
    {
        if ($value->data === null) {
            return null;
        }
        $text = \FFI::string($value->data, $value->length);
        self::library()->pfc_value_free(\FFI::addr($value));
        return $text;
    }

    /**
     * Returns an array of keys for C, and the buffers that must live as long as it.
     *
     * @param list<string> $keys
     * @return array{\FFI\CData, list<\FFI\CData>}
     */
    private static function keys(array $keys): array
    {
        $library = self::library();
        $count = count($keys);
        $array = $library->new("pfc_key[$count]");
        $buffers = [];
        foreach ($keys as $index => $key) {
            $length = strlen($key);
            $buffers[$index] = $library->new('char[' . max($length, 1) . ']');
            \FFI::memcpy($buffers[$index], $key, $length);
            $array[$index]->data = $library->cast('char *', \FFI::addr($buffers[$index][0]));
            $array[$index]->length = $length;
        }
        return [$array, $buffers];
    }

    private static function milliseconds(int|float|null $seconds): int
    {
        if ($seconds === null) {
            return self::NEVER;
        }
        if (!($seconds > 0 && $seconds <= 1e11)) {
            throw new \ValueError("a time of $seconds seconds");
        }
        return (int) ceil($seconds * 1000);
    }
}

/** A failed call to the cache. The code is the status, below 0. */
final class PreforkCacheException extends \RuntimeException
{
    public function __construct(
        /** Its name, such as "PFC_TIMEOUT". */
        public readonly string $status,
        string $message,
        int $code,
        /** Whether the same call may succeed later. */
        public readonly bool $isTransient,
    ) {
        parent::__construct("$status: $message", $code);
    }
}
