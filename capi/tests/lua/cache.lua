-- Every operation, fetches, and forks without LuaJIT's knowledge: cache.lua URL.
local ffi = require "ffi"
local prefork_cache = require "prefork_cache"

ffi.cdef [[
int fork(void);
int waitpid(int, int *, int);
void _exit(int);
unsigned alarm(unsigned);
]]

local function raised(work)
  local is_done, failure = pcall(work)
  assert(not is_done, "nothing was raised")
  return failure
end

local cache = prefork_cache.open(arg[1], { namespace = "lua" })
assert(prefork_cache.open(arg[1], { namespace = "lua" }).handle == cache.handle)

-- Entries.
cache:clear()
assert(cache:get("k") == nil)
assert(cache:replace("k", "never", 60) == false)
cache:set("k", "a\0b", 60)
assert(cache:get("k") == "a\0b")
assert(cache:add("k", "never", 60) == false)
assert(cache:replace("k", "other", 60) == true)
local large = ("x"):rep(100000)
cache:set("large", large)
assert(cache:get("large") == large)
assert(cache:expires_in("large") == math.huge and cache:expires_in("none") == nil)
assert(cache:touch("k", 30) and not cache:touch("none", 30))
local left = cache:expires_in("k")
assert(left > 20 and left <= 30, left)
local found = cache:get_many { "k", "none", "large" }
assert(found.k == "other" and found.none == nil and found.large == large)
assert(next(cache:get_many {}) == nil)
assert(cache:exists("k"))
assert(cache:delete_many { "k", "none", "large" } == 2)
assert(not cache:exists("k") and not cache:delete("k"))
assert(cache:increment("n", 5, 60) == 5 and cache:increment("n") == 6 and cache:counter("n") == 6)
assert(cache:counter("none") == nil)

-- Failures are errors.
local refused = raised(function() prefork_cache.open("memory://", {}); prefork_cache.open("null://") end)
assert(refused.status == "PFC_CONFLICT" and not refused.is_transient, tostring(refused))
assert(tostring(refused):find("prefork_cache: PFC_CONFLICT: "), tostring(refused))
assert(raised(function() cache:get("\255") end).status == "PFC_BAD_KEY")
assert(raised(function() cache:set("k", "v", 0) end):find("a time of 0 seconds"))
local down = prefork_cache.open("redis://127.0.0.1:1", { name = "down" })
assert(raised(function() down:get("k") end).is_transient)
assert(raised(function() down:get_many { "k" } end).message:find("127.0.0.1:1"))

-- Fetches: errors of a loader unwind no frame of the library.
local loads = 0
local function load() loads = loads + 1; return "loaded" end
local failure = {}
assert(raised(function() cache:fetch("page", 60, function() error(failure) end) end) == failure)
assert(raised(function() cache:fetch("page", 60, function() end) end):find("a loader returned a nil"))
assert(cache:fetch("page", 60, load) == "loaded" and cache:fetch("page", 60, load) == "loaded" and loads == 1)
assert(cache:fetch("soon", 0.02, load, { stale = 60 }) == "loaded")
repeat
  local was_called = false
  local page = cache:fetch("soon", 60, function() was_called = true; error("no") end)
  assert(page == "loaded", "the stale value is returned")
until was_called
assert(raised(function() cache:fetch("never", 60, load, { refresh_ahead = 60 }) end).status == "PFC_BAD_TTL")
assert(cache:fetch("never", 60, load) == "loaded", "the refused claim was ended")
assert(down:fetch("k", 60, load) == "loaded", "a fetch returns its value during an outage")
assert(prefork_cache.take_errors():find('"cache":"down"') and not prefork_cache.take_errors())

-- Forks.
local generation = prefork_cache.generation()
for round = 1, 20 do
  cache:set("round", tostring(round), 60)
  local child = ffi.C.fork()
  if child == 0 then
    ffi.C.alarm(60)
    local is_right = pcall(function()
      assert(cache:get("round") == tostring(round) and prefork_cache.generation() == generation + 1)
      cache:set("child", tostring(round), 60)
      assert(cache:get("child") == tostring(round))
      assert(prefork_cache.after_fork():find("forked"))
    end)
    ffi.C._exit(is_right and 0 or 1)
  end
  local ended = ffi.new("int[1]")
  assert(ffi.C.waitpid(child, ended, 0) == child and ended[0] == 0, "a child failed")
  assert(cache:get("round") == tostring(round))
end
assert(os.execute("true") == 0 and io.popen("echo hello"):read("*l") == "hello")
assert(cache:get("round") == "20")
assert(prefork_cache.after_fork():find("not forked"))
assert(cache:stats():find('"hits":') and prefork_cache.prometheus():find("prefork_cache_hits_total"))
print("ok")
