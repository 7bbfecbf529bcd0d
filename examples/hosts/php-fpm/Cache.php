<?php

// prefork-cache in PHP by its C interface, as much of it as this host needs. Only what was preloaded may use FFI.
final class Cache
{
    private const MISS = 1;

    private function __construct(private FFI $library, private FFI\CData $handle)
    {
    }

    // The cache on the server that the environment names: REDIS_URL, MEMCACHED_URL.
    public static function named(string $name): self
    {
        $library = FFI::scope('prefork_cache');
        $url = getenv(strtoupper($name) . '_URL');
        $handle = $library->new('struct pfc_cache *');
        $opened = $library->pfc_open($name, strlen($name), $url, strlen($url), null, 0, FFI::addr($handle));
        return new self($library, self::check($library, $opened) === 0 ? $handle : null);
    }

    public function set(string $key, string $value, int $seconds): void
    {
        $length = strlen($value);
        $set = $this->library->pfc_set($this->handle, $key, strlen($key), $value, $length, 1000 * $seconds, null);
        self::check($this->library, $set);
    }

    public function get(string $key): ?string
    {
        $value = $this->library->new('struct pfc_value');
        $got = $this->library->pfc_get($this->handle, $key, strlen($key), FFI::addr($value), null);
        if (self::check($this->library, $got) === self::MISS) {
            return null;
        }
        $taken = $value->length === 0 ? '' : FFI::string($value->data, $value->length);
        $this->library->pfc_value_free(FFI::addr($value));
        return $taken;
    }

    private static function check(FFI $library, int $status): int
    {
        return $status >= 0 ? $status : throw new RuntimeException(FFI::string($library->pfc_error_message()));
    }
}
