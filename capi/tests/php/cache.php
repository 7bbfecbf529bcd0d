<?php

// Every operation, fetches, and forks without PHP's knowledge: cache.php URL.

declare(strict_types=1);

if (!class_exists('PreforkCache')) {
    require getenv('PREFORK_CACHE_PHP');
}

function check(bool $condition, string $what): void
{
    if (!$condition) {
        throw new LogicException($what);
    }
}

function thrown(callable $work): Throwable
{
    try {
        $work();
    } catch (Throwable $thrown) {
        return $thrown;
    }
    throw new LogicException('nothing was thrown');
}

$cache = new PreforkCache($argv[1], namespace: 'php');
new PreforkCache($argv[1], namespace: 'php');

// Entries.
$cache->clear();
check($cache->get('k') === null, 'a miss');
check(!$cache->replace('k', 'never', 60), 'nothing to replace');
$cache->set('k', "a\0b", 60);
check($cache->get('k') === "a\0b", 'any bytes');
check(!$cache->add('k', 'never', 60) && $cache->replace('k', 'other', 60), 'conditions');
$large = str_repeat('x', 100_000);
$cache->set('large', $large);
check($cache->get('large') === $large, 'a large one');
$cache->set('empty', '', 60);
check($cache->get('empty') === '', 'an empty one');
check($cache->expiresIn('large') === INF && $cache->expiresIn('none') === null, 'no expiry');
check($cache->touch('k', 30) && !$cache->touch('none', 30), 'touch');
$left = $cache->expiresIn('k');
check($left > 20 && $left <= 30, "expires in $left");
check($cache->getMany(['k', 'none', 'large']) === ['k' => 'other', 'large' => $large], 'many');
check($cache->getMany([]) === [] && $cache->deleteMany([]) === 0, 'none');
check($cache->exists('k') && $cache->deleteMany(['k', 'none', 'large']) === 2, 'delete many');
check(!$cache->exists('k') && !$cache->delete('k'), 'gone');
check($cache->increment('n', 5, 60) === 5 && $cache->increment('n') === 6 && $cache->counter('n') === 6, 'counters');
check($cache->counter('none') === null, 'no counter');

// Failures are exceptions.
$refused = thrown(fn () => new PreforkCache('null://'));
check($refused instanceof PreforkCacheException && $refused->status === 'PFC_CONFLICT' && !$refused->isTransient, 'conflict');
check($refused->getCode() === -100 && str_starts_with($refused->getMessage(), 'PFC_CONFLICT: the cache "default"'), 'text');
check(thrown(fn () => $cache->get("\xFF"))->status === 'PFC_BAD_KEY', 'no UTF-8');
check(thrown(fn () => $cache->set('k', 'v', 0)) instanceof ValueError, 'no duration');
$down = new PreforkCache('redis://127.0.0.1:1', 'down');
check(thrown(fn () => $down->get('k'))->isTransient, 'down');
check(str_contains(thrown(fn () => $down->getMany(['k']))->getMessage(), '127.0.0.1:1'), 'which server');

// Fetches: exceptions of a loader unwind no frame of the library.
$loads = 0;
$load = function (string $key) use (&$loads): string {
    $loads++;
    return "loaded $key";
};
$failure = new DomainException('no');
check(thrown(fn () => $cache->fetch('page', 60, fn () => throw $failure)) === $failure, 'its own exception');
check(thrown(fn () => $cache->fetch('page', 60, fn () => null)) instanceof TypeError, 'no string');
for ($round = 0; $round < 2; $round++) {
    check($cache->fetch('page', 60, $load) === 'loaded page' && $loads === 1, 'loaded once');
}
check($cache->fetch('soon', 0.02, $load, stale: 60) === 'loaded soon', 'soon stale');
do {
    $wasCalled = false;
    $soon = $cache->fetch('soon', 60, function () use (&$wasCalled) {
        $wasCalled = true;
        throw new DomainException('no');
    });
    check($soon === 'loaded soon', 'the stale value is returned');
} while (!$wasCalled);
check(thrown(fn () => $cache->fetch('never', 60, $load, refreshAhead: 60))->status === 'PFC_BAD_TTL', 'refused');
check($cache->fetch('never', 60, $load) === 'loaded never', 'the refused claim was ended');
check($down->fetch('k', 60, $load) === 'loaded k', 'a fetch returns its value during an outage');
check(in_array('down', array_column(PreforkCache::takeErrors()['errors'], 'cache'), true), 'reported');
check(PreforkCache::takeErrors() === ['dropped' => 0, 'errors' => []], 'cleared');

// Forks.
$generation = PreforkCache::generation();
for ($round = 0; function_exists('pcntl_fork') && $round < 20; $round++) {
    $cache->set('round', "$round", 60);
    $child = pcntl_fork();
    if ($child === 0) {
        pcntl_alarm(60);
        check($cache->get('round') === "$round" && PreforkCache::generation() === $generation + 1, 'a child');
        $cache->set('child', "$round", 60);
        check($cache->get('child') === "$round" && str_contains(PreforkCache::afterFork(), 'forked'), "a child's own");
        posix_kill(posix_getpid(), SIGKILL); // without a shutdown of inherited connections
    }
    pcntl_waitpid($child, $ended);
    check(pcntl_wifsignaled($ended) && pcntl_wtermsig($ended) === SIGKILL, 'a child failed');
    check($cache->get('round') === "$round", 'the parent continues');
}
$cache->set('round', 'last', 60);
check(shell_exec('echo hello') === "hello\n" && `echo hello` === "hello\n", 'a shell');
check($cache->get('round') === 'last' && str_contains(PreforkCache::afterFork(), 'not forked'), 'the parent');
check($cache->stats()['hits'] > 0 && str_contains(PreforkCache::prometheus(), 'prefork_cache_hits_total'), 'stats');
echo "ok\n";
