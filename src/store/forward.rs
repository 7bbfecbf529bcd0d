//! [`CacheStore`] for [`Arc`] and [`Box`].
//!
//! Every method is forwarded, the provided ones too, so that the inner store's own batches are used. The methods
//! return the inner store's boxed futures unchanged. An `async fn` here would box each of them a second time, so the
//! signatures below are written as `async_trait` expands them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::{CacheStore, Kept, Op, Outcome, Ttl, When};
use crate::error::Result;
use crate::lifecycle::Refresh;
use crate::server_stats::ServerStats;

macro_rules! forward {
    ($(fn $method:ident<$($life:lifetime),+>($($arg:ident: $type:ty),+) -> $output:ty;)+) => {$(
        fn $method<'life0, $($life,)+ 'async_trait>(
            &'life0 self,
            $($arg: $type),+
        ) -> Pin<Box<dyn Future<Output = $output> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            $($life: 'async_trait,)+
            Self: 'async_trait,
        {
            (**self).$method($($arg),+)
        }
    )+};
}

macro_rules! store_behind {
    ($pointer:ident) => {
        #[deny(clippy::missing_trait_methods)]
        impl<S: CacheStore + ?Sized> CacheStore for $pointer<S> {
            fn name(&self) -> &str {
                (**self).name()
            }

            fn reset(&self) {
                (**self).reset();
            }

            fn is_shared(&self) -> bool {
                (**self).is_shared()
            }

            fn refresh(&self) -> Refresh {
                (**self).refresh()
            }

            fn servers(&self) -> Vec<ServerStats> {
                (**self).servers()
            }

            fn kept(&self, key: &str) -> Option<Kept> {
                (**self).kept(key)
            }

            fn freeze(&self) -> bool {
                (**self).freeze()
            }

            fn identity(&self) -> Option<usize> {
                (**self).identity()
            }

            fn reconnect<'life0, 'async_trait>(
                &'life0 self,
            ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'async_trait>>
            where
                'life0: 'async_trait,
                Self: 'async_trait,
            {
                (**self).reconnect()
            }

            forward! {
                fn get<'life1>(key: &'life1 str) -> Result<Option<Bytes>>;
                fn get_latest<'life1>(key: &'life1 str) -> Result<Option<Bytes>>;
                fn set<'life1>(key: &'life1 str, value: Bytes, ttl: Ttl, when: When) -> Result<bool>;
                fn delete<'life1>(key: &'life1 str) -> Result<bool>;
                fn compare_and_set<'life1, 'life2>(
                    key: &'life1 str,
                    expected: Option<&'life2 [u8]>,
                    new: Option<Bytes>,
                    ttl: Ttl
                ) -> Result<bool>;
                fn clear<'life1>(prefix: &'life1 str) -> Result<()>;
                fn touch<'life1>(key: &'life1 str, ttl: Ttl) -> Result<bool>;
                fn increment<'life1>(key: &'life1 str, by: i64, ttl: Ttl) -> Result<i64>;
                fn ttl<'life1>(key: &'life1 str) -> Result<Option<Ttl>>;
                fn append<'life1>(key: &'life1 str, value: Bytes, ttl: Ttl) -> Result<()>;
                fn batch<'life1, 'life2>(operations: &'life1 [Op<'life2>]) -> Vec<Result<Outcome>>;
                fn get_many<'life1, 'life2>(keys: &'life1 [&'life2 str]) -> Vec<Result<Option<Bytes>>>;
                fn set_many<'life1, 'life2>(entries: &'life1 [(&'life2 str, Bytes)], ttl: Ttl) -> Vec<Result<()>>;
                fn delete_many<'life1, 'life2>(keys: &'life1 [&'life2 str]) -> Vec<Result<bool>>;
            }
        }
    };
}

store_behind!(Arc);
store_behind!(Box);
