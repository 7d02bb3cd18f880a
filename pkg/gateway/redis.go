// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/xgw-project/xgw/pkg/config"
)

// redisTime is how long one step of a conversation with the server may take. Nothing of a
// request waits for longer than storeTime.
const redisTime = storeTime * 4 / 5

// newRedis makes a client; it connects when it is used.
func newRedis(c *config.Redis) (*redis.Client, error) {
	o := &redis.Options{
		Addr: c.Address, Username: c.User, DB: c.Database, DialTimeout: redisTime, ReadTimeout: redisTime, WriteTimeout: redisTime,
		MaxRetries: -1, DialerRetries: 1, PoolSize: 8, ContextTimeoutEnabled: true, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if c.PasswordFile != "" {
		text, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("read the password of redis: %w", err)
		}
		o.Password = string(bytes.TrimRight(text, "\r\n"))
	}
	if c.TLS {
		host, _, err := net.SplitHostPort(c.Address)
		if err != nil {
			return nil, fmt.Errorf("redis %s: %w", c.Address, err)
		}
		o.TLSConfig = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	}
	redis.SetLogger(quiet{})
	return redis.NewClient(o), nil
}

// quiet keeps the client's own words out of the error log: who uses it says when the server does
// not answer, once.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}
