<?php

declare(strict_types=1);

/**
 * A cache that survives fork(), for PHP with FFI: Redis, Memcached and in-memory stores.
 *
 *     require 'prefork_cache.php';
 *     $cache = new PreforkCache('redis://127.0.0.1:6379');
 *     $cache->set('motd', 'hello', 60);
 *     $page = $cache->fetch('page', 60, fn () => render());
 *
 * Keys and values are strings. Times are in seconds, fractions too; null in the place of one: it never expires.
 * Failures are PreforkCacheException. A loader may throw: none of the library's frames is on the stack while it runs.
 * No hook is needed after a fork.
 *
 * On the command line FFI has to be enabled: `ffi.enable=1`. In FPM, with `ffi.enable=preload`, preload both this file
 * and the declarations: `opcache.preload=/path/prefork_cache.php` and `ffi.preload=/path/prefork_cache.ffi.h`; or,
 * where the master is not root, `opcache.preload` with a script of yours that requires this file and calls
 * PreforkCache::load(). Each worker then connects for itself.
 *
 * Calls that wait return to PHP every 0.1 s, so that signals are handled where pcntl_async_signals(true) is set.
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

    /** Opens a cache, or the one that is open under this name in this process. */
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
     * Loads the library: for opcache.preload; elsewhere it happens by itself. The declarations are where the
     * environment's PREFORK_CACHE_FFI_H says, or where they are installed.
     */
    public static function load(?string $header = null): \FFI
    {
        $places = array_filter([$header, getenv('PREFORK_CACHE_FFI_H') ?: null, ...self::INSTALLED]);
        foreach ($places as $place) {
            if (is_file($place)) {
                return \FFI::load($place);
            }
        }
        $tried = implode(', ', $places);
        throw new \RuntimeException("prefork_cache.ffi.h is not in $tried: set PREFORK_CACHE_FFI_H");
    }

    private static function library(): \FFI
    {
        return self::$library ??= self::found();
    }

    private static function found(): \FFI
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

    /** The string under a key, or null. */
    public function get(string $key): ?string
    {
        $library = self::library();
        $value = $library->new('pfc_value');
        self::whole(fn ($call) => $library->pfc_get($this->handle, $key, strlen($key), \FFI::addr($value), $call));
        return self::take($value);
    }

    /**
     * Those that are there, by key.
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
        [$asked, $texts] = self::keys($keys);
        $count = count($keys);
        $values = $library->new("pfc_value[$count]");
        try {
            self::whole(fn ($call) => $library->pfc_get_many($this->handle, $asked, $count, $values, null, $call));
        } finally {
            foreach ($keys as $place => $key) {
                $text = self::take($values[$place]);
                if ($text !== null) {
                    $found[$key] = $text;
                }
            }
        }
        return $found;
    }

    /** Stores a string, whatever is there. */
    public function set(string $key, string $value, int|float|null $seconds = null): void
    {
        $this->store('pfc_set', $key, $value, $seconds);
    }

    /** Stores a string where there is none. Returns whether it was stored. */
    public function add(string $key, string $value, int|float|null $seconds = null): bool
    {
        return $this->store('pfc_add', $key, $value, $seconds);
    }

    /** Stores a string in the place of another. Returns whether it was stored. */
    public function replace(string $key, string $value, int|float|null $seconds = null): bool
    {
        return $this->store('pfc_replace', $key, $value, $seconds);
    }

    private function store(string $verb, string $key, string $value, int|float|null $seconds): bool
    {
        $library = self::library();
        $ttl = self::milliseconds($seconds);
        $put = fn ($call) => $library->$verb($this->handle, $key, strlen($key), $value, strlen($value), $ttl, $call);
        return self::whole($put) === self::OK;
    }

    /** Removes an entry. Returns whether there was one. */
    public function delete(string $key): bool
    {
        $library = self::library();
        return self::whole(fn ($call) => $library->pfc_delete($this->handle, $key, strlen($key), $call)) === self::OK;
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
        [$asked, $texts] = self::keys(array_values($keys));
        $count = count($keys);
        $statuses = $library->new("pfc_status[$count]");
        self::whole(fn ($call) => $library->pfc_delete_many($this->handle, $asked, $count, $statuses, $call));
        $removed = 0;
        for ($place = 0; $place < $count; $place++) {
            $removed += $statuses[$place] === self::OK ? 1 : 0;
        }
        return $removed;
    }

    /** Whether there is an entry. */
    public function exists(string $key): bool
    {
        $library = self::library();
        return self::whole(fn ($call) => $library->pfc_exists($this->handle, $key, strlen($key), $call)) === self::OK;
    }

    /** Gives an entry another time to live. Returns whether there is one. */
    public function touch(string $key, int|float|null $seconds): bool
    {
        $library = self::library();
        $ttl = self::milliseconds($seconds);
        $touch = fn ($call) => $library->pfc_touch($this->handle, $key, strlen($key), $ttl, $call);
        return self::whole($touch) === self::OK;
    }

    /** For how many seconds an entry lives: INF for one that never expires, null where there is none. */
    public function expiresIn(string $key): ?float
    {
        $library = self::library();
        $left = $library->new('int64_t');
        $ask = fn ($call) => $library->pfc_expires_in($this->handle, $key, strlen($key), \FFI::addr($left), $call);
        if (self::whole($ask) === self::MISS) {
            return null;
        }
        return $left->cdata === self::NEVER ? INF : $left->cdata / 1000;
    }

    /** Adds to a counter, which lives for so many seconds from its beginning. Returns what it has come to. */
    public function increment(string $key, int $by = 1, int|float|null $seconds = null): int
    {
        $library = self::library();
        $ttl = self::milliseconds($seconds);
        $count = $library->new('int64_t');
        $result = \FFI::addr($count);
        $add = fn ($call) => $library->pfc_increment($this->handle, $key, strlen($key), $by, $ttl, $result, $call);
        self::whole($add);
        return $count->cdata;
    }

    /** The number in a counter, or null. */
    public function counter(string $key): ?int
    {
        $library = self::library();
        $count = $library->new('int64_t');
        $ask = fn ($call) => $library->pfc_counter($this->handle, $key, strlen($key), \FFI::addr($count), $call);
        return self::whole($ask) === self::MISS ? null : $count->cdata;
    }

    /** Removes all entries of the namespace; of a cache without one, all entries of the store. */
    public function clear(): void
    {
        $library = self::library();
        self::whole(fn ($call) => $library->pfc_clear($this->handle, $call));
    }

    /**
     * The string under a key, or else what `$load` returns, which is then stored: one caller loads, among all processes
     * on the server, and the others wait for it. What `$load` throws is thrown, unless there is a stale string.
     *
     * @param callable(string): string $load
     * @param int|float $stale         For how many seconds after its time it goes on serving while it is loaded again.
     * @param int|float $refreshAhead  How many seconds before its end one caller loads it again.
     * @param float $jitter            The part of its time by which it may end sooner.
     * @param int|float $loadTimeout   How many seconds a load may take before others no longer wait for it.
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
        $status = self::whole($begin);
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
            self::whole(fn ($call) => $library->pfc_fetch_complete($claim, $loaded, $length, $addr, $call));
            $claim = null;
        } catch (\Exception $thrown) {
            if ($old === null) {
                throw $thrown;
            }
            return $old;
        } finally {
            if ($claim !== null) {
                self::whole(fn ($call) => $library->pfc_fetch_fail($claim, null, $call));
            }
        }
        return $loaded;
    }

    /**
     * What this process has done through the cache.
     *
     * @return array<string, mixed>
     */
    public function stats(): array
    {
        $value = self::library()->new('pfc_value');
        self::checked(self::library()->pfc_stats($this->handle, \FFI::addr($value)));
        return json_decode(self::take($value), true, flags: JSON_THROW_ON_ERROR);
    }

    /** What this process has done through all its caches, in the text format of Prometheus. */
    public static function prometheus(): string
    {
        $value = self::library()->new('pfc_value');
        self::checked(self::library()->pfc_prometheus(\FFI::addr($value)));
        return self::take($value);
    }

    /**
     * The failures that no call has thrown; they are forgotten then.
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

    /** Brings this process up to date after a fork, now rather than at first use. Never needed. Returns a log line. */
    public static function afterFork(): string
    {
        $value = self::library()->new('pfc_value');
        self::checked(self::library()->pfc_after_fork(\FFI::addr($value)));
        return self::take($value);
    }

    /** A number that is another one in each process that was forked. */
    public static function generation(): int
    {
        return self::library()->pfc_generation();
    }

    /** Makes a call until it is done. */
    private static function whole(callable $make): int
    {
        $call = self::library()->new('pfc_call *');
        $unfinished = \FFI::addr($call);
        try {
            do {
                // Between two of them PHP handles its signals.
                $status = $make($unfinished);
            } while ($status === self::AGAIN);
        } finally {
            if (!\FFI::isNull($call)) {
                self::library()->pfc_call_cancel($call);
            }
        }
        return self::checked($status);
    }

    /** The status, unless it is an error. */
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

    /** Takes the string out of a value, if there is one. */
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
     * An array of keys for C, and what has to live as long as it.
     *
     * @param list<string> $keys
     * @return array{\FFI\CData, list<\FFI\CData>}
     */
    private static function keys(array $keys): array
    {
        $library = self::library();
        $count = count($keys);
        $asked = $library->new("pfc_key[$count]");
        $texts = [];
        foreach ($keys as $place => $key) {
            $length = strlen($key);
            $texts[$place] = $library->new('char[' . max($length, 1) . ']');
            \FFI::memcpy($texts[$place], $key, $length);
            $asked[$place]->data = $library->cast('char *', \FFI::addr($texts[$place][0]));
            $asked[$place]->length = $length;
        }
        return [$asked, $texts];
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

/** A call to the cache that has failed. The code is the status, below 0. */
final class PreforkCacheException extends \RuntimeException
{
    public function __construct(
        /** Its name, such as "PFC_TIMEOUT". */
        public readonly string $status,
        string $message,
        int $code,
        /** Whether the same call may well succeed later. */
        public readonly bool $isTransient,
    ) {
        parent::__construct("$status: $message", $code);
    }
}
