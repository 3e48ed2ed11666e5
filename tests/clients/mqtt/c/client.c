/* Eclipse Paho for C, its synchronous client, 3.1.1 and 5. */
#include <MQTTClient.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static MQTTClient client;
static int five, count;
static char said[64 * 1024];

static void check(int code, const char *what) {
  if (code != MQTTCLIENT_SUCCESS) {
    fprintf(stderr, "%s: %d\n", what, code);
    exit(1);
  }
}

static void subscribe(const char *topic) {
  if (five) {
    MQTTResponse answer = MQTTClient_subscribe5(client, topic, 2, NULL, NULL);
    if (answer.reasonCode >= 0x80 || answer.reasonCode < 0) check(answer.reasonCode, topic);
    MQTTResponse_free(answer);
  } else {
    int code = MQTTClient_subscribe(client, topic, 2);
    check(code == 2 ? 0 : code, topic);
  }
}

static void publish(const char *topic, const char *payload, int qos, int retain) {
  MQTTClient_message message = MQTTClient_message_initializer;
  MQTTClient_deliveryToken token;
  message.payload = (void *)payload;
  message.payloadlen = (int)strlen(payload);
  message.qos = qos;
  message.retained = retain;
  if (five) {
    MQTTResponse answer = MQTTClient_publishMessage5(client, topic, &message, &token);
    check(answer.reasonCode, topic);
    MQTTResponse_free(answer);
  } else {
    check(MQTTClient_publishMessage(client, topic, &message, &token), topic);
  }
  if (qos > 0) check(MQTTClient_waitForCompletion(client, token, 20000), "completion");
}

static void take(int wanted, const char *prefix) {
  while (wanted > 0) {
    char *topic = NULL;
    int length;
    MQTTClient_message *message = NULL;
    int code = MQTTClient_receive(client, &topic, &length, &message, 20000);
    if (message == NULL) check(code ? code : 1, "receive");
    if (strncmp(topic, prefix, strlen(prefix)) == 0) {
      size_t at = strlen(said);
      snprintf(said + at, sizeof said - at, "%s\"%s %.*s %d\"", count++ ? ", " : "", topic, message->payloadlen,
               (char *)message->payload, message->qos);
      wanted--;
    }
    MQTTClient_freeMessage(&message);
    MQTTClient_free(topic);
  }
}

int main(int arguments, char **argument) {
  if (arguments != 5) return 2;
  const char *name = argument[4];
  int first = strcmp(argument[1], "first") == 0, present;
  char address[256], topic[256], payload[16];
  five = strcmp(argument[2], "5") == 0;
  snprintf(address, sizeof address, "tcp%s", strchr(argument[3], ':'));
  MQTTClient_createOptions create = MQTTClient_createOptions_initializer;
  create.MQTTVersion = five ? MQTTVERSION_5 : MQTTVERSION_3_1_1;
  check(MQTTClient_createWithOptions(&client, address, name, MQTTCLIENT_PERSISTENCE_NONE, NULL, &create), "create");
  MQTTClient_connectOptions three_options = MQTTClient_connectOptions_initializer;
  MQTTClient_connectOptions five_options = MQTTClient_connectOptions_initializer5;
  MQTTClient_connectOptions options = five ? five_options : three_options;
  MQTTClient_willOptions will = MQTTClient_willOptions_initializer;
  snprintf(topic, sizeof topic, "will/%s", name);
  will.topicName = topic;
  will.message = "gone";
  will.qos = 1;
  if (first) options.will = &will;
  if (five) {
    MQTTProperties properties = MQTTProperties_initializer;
    MQTTProperty expiry = {.identifier = MQTTPROPERTY_CODE_SESSION_EXPIRY_INTERVAL, .value.integer4 = 3600};
    MQTTProperties_add(&properties, &expiry);
    options.cleanstart = 0;
    MQTTResponse answer = MQTTClient_connect5(client, &options, &properties, NULL);
    check(answer.reasonCode, "connect");
    MQTTResponse_free(answer);
    present = 1; /* It does not say. */
  } else {
    options.cleansession = 0;
    options.MQTTVersion = MQTTVERSION_3_1_1;
    check(MQTTClient_connect(client, &options), "connect");
    present = options.returned.sessionPresent;
  }
  if (first) {
    snprintf(topic, sizeof topic, "in/%s/#", name);
    subscribe(topic);
    snprintf(topic, sizeof topic, "state/%s", name);
    publish(topic, "on", 1, 1);
    for (int qos = 0; qos < 3; qos++) {
      for (int i = 0; i < 10; i++) {
        snprintf(topic, sizeof topic, "in/%s/q%d", name, qos);
        snprintf(payload, sizeof payload, "%d", i);
        publish(topic, payload, qos, 0);
      }
    }
    snprintf(topic, sizeof topic, "in/%s/q", name);
    take(30, topic);
  } else {
    snprintf(topic, sizeof topic, "in/%s/later", name);
    take(40, topic);
    snprintf(topic, sizeof topic, "state/%s", name);
    subscribe(topic);
    take(1, topic);
    if (five) MQTTClient_disconnect5(client, 1000, MQTTREASONCODE_SUCCESS, NULL);
    else MQTTClient_disconnect(client, 1000);
  }
  printf("{\"present\": %s, \"got\": [%s]}\n", present ? "true" : "false", said);
  fflush(stdout);
  _exit(0);
}
